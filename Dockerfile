# CPU image of wsi_pipeline, not run as root.
#   docker build --build-arg PIP_EXTRA_INDEX_URL=<index with CPU builds of torch> -t wsi .
#   docker run --rm --network none --user "$(id -u):$(id -g)" -v "$PWD:/data" wsi run study.yaml
# Without an index of its own, torch comes from pip's default one, which may be a larger build.

ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG PIP_INDEX_URL
ARG PIP_EXTRA_INDEX_URL
ARG PIP_FIND_LINKS
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
WORKDIR /src
RUN python -m venv /opt/wsi
ENV PATH=/opt/wsi/bin:$PATH
# The version of torch is in the Makefile; everything else is pinned by hash.
COPY Makefile requirements-runtime.lock ./
RUN sed -n 's/^TORCH := //p' Makefile | xargs pip install \
 && pip install --require-hashes --no-deps -r requirements-runtime.lock
COPY pyproject.toml README.md LICENSE ./
COPY wsi_pipeline wsi_pipeline
RUN pip install --no-deps . \
 && pip check

FROM python:${PYTHON}-slim
LABEL org.opencontainers.image.title="wsi_pipeline" \
      org.opencontainers.image.description="From whole-slide images to slide-level predictions and explanations" \
      org.opencontainers.image.licenses="Apache-2.0"
RUN useradd --create-home --uid 1000 wsi
COPY --from=build /opt/wsi /opt/wsi
ENV PATH=/opt/wsi/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    MPLCONFIGDIR=/tmp/matplotlib \
    HF_HUB_OFFLINE=1
USER 1000
WORKDIR /data
ENTRYPOINT ["wsi"]
CMD ["--help"]
