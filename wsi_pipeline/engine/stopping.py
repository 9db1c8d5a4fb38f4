"""Ctrl-C and SIGTERM: one clean stop within seconds, even while native code is running."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from types import FrameType

EXIT_CODE = 130
MESSAGE = "stopped; finished work is kept: the same command continues from there"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def stoppable(grace_s: float = 10) -> Iterator[None]:
    """Inside, the first SIGINT or SIGTERM raises ``KeyboardInterrupt``; later ones have no effect.

    If the block has not ended ``grace_s`` later, because the signal is stuck behind native code or was lost in a
    callback, the process ends with code 130: its files appear complete or not at all, and its workers end with it.
    Outside the main thread, where no signal arrives, nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended = threading.Event()
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    before = {number: signal.signal(number, _stop) for number in _SIGNALS}
    woken = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watch = threading.Thread(target=_watch, args=(reader, ended, grace_s), name="stop", daemon=True)
    watch.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        writer.close()
        watch.join()
        reader.close()


def _stop(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
    for each in _SIGNALS:
        signal.signal(each, _ignore)
    raise KeyboardInterrupt


def _ignore(number: int, frame: FrameType | None) -> None:
    """Not ``SIG_IGN``, which worker processes that start now would inherit."""


def _watch(reader: socket.socket, ended: threading.Event, grace_s: float) -> None:
    """Wait for a signal's number, which the interpreter writes at once, whatever the main thread is doing."""
    while data := reader.recv(16):
        if set(data) & set(_SIGNALS) and not ended.wait(grace_s):
            os.write(2, f"\n{MESSAGE}\n".encode())
            os._exit(EXIT_CODE)
