"""Reader for plain images: PNG, JPEG and one-page TIFF, kept in memory as one level."""

from __future__ import annotations

import struct
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, TiffImagePlugin, UnidentifiedImageError

from ..errors import SlideError
from ..types import Box, UInt8
from .resolution import Claim, tiff_claim
from .slide import Backend, readers

_EIGHT_BIT = {"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB"}
# Exceptions that Pillow raises on damaged files.
_DAMAGE = (OSError, ValueError, SyntaxError, EOFError, TypeError, LookupError, OverflowError, struct.error)
_RESOLUTION_UNIT, _X_RESOLUTION, _Y_RESOLUTION = 296, 282, 283


class PlainImage:
    """One image in memory; see ``slide.Backend``."""

    def __init__(self, pixels: UInt8, vendor: str, claims: tuple[Claim, ...]) -> None:
        height, width = pixels.shape[:2]
        self._pixels = pixels
        self.vendor = vendor
        self.sizes: tuple[tuple[int, int], ...] = ((width, height),)
        self.downsamples: tuple[float, ...] = (1.0,)
        self.bounds_px0: Box = (0, 0, width, height)
        self.claims = claims

    def read(self, xy_px0: tuple[int, int], level: int, size: tuple[int, int]) -> UInt8:  # noqa: ARG002
        (x, y), (width, height) = xy_px0, size
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:
        self._pixels = np.zeros((0, 0, 3), np.uint8)


@readers.register("image")
def plain_image(path: Path) -> Backend:
    """PNG, JPEG or one-page TIFF of up to 89 million pixels; only some TIFFs state a resolution."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's warnings about metadata that is not used here
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as image:
                _check(image)
                return PlainImage(_over_white(image), f"{image.format}".lower(), _claims(image))
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise SlideError(
                f"more than {Image.MAX_IMAGE_PIXELS} pixels are too many for a plain image; convert it to a pyramid, "
                f"for example with `vips tiffsave in.png out.tif --tile --pyramid --compression jpeg`"
            ) from error
        except UnidentifiedImageError as error:
            raise SlideError("not a PNG, JPEG or TIFF image") from error
        except SlideError:
            raise
        except _DAMAGE as error:
            raise SlideError(f"damaged or truncated ({' '.join(str(error).split())})") from error


def _check(image: Image.Image) -> None:
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise SlideError(f"it has {pages} pages: a stack or a pyramid, not a plain image")
    if image.mode not in _EIGHT_BIT:
        raise SlideError(f"its pixels are {image.mode}, not 8-bit; convert it to 8-bit RGB")


def _over_white(image: Image.Image) -> UInt8:
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    rgba = image.convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return np.asarray(Image.alpha_composite(white, rgba).convert("RGB"))


def _claims(image: Image.Image) -> tuple[Claim, ...]:
    """A TIFF's resolution tags; the screen density in a PNG or JPEG is not the resolution of a microscope."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return ()
    tags = image.tag_v2
    unit = {2: "inch", 3: "centimeter"}.get(tags.get(_RESOLUTION_UNIT, 1), "")
    claim = tiff_claim(_float(tags.get(_X_RESOLUTION)), _float(tags.get(_Y_RESOLUTION)), unit)
    return (claim,) if claim else ()


def _float(value: object) -> float | None:
    try:
        number = float(value)  # type: ignore[arg-type]  # a TIFF rational, or None
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if number == number else None
