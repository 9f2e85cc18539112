"""Ray itself: importing it, what a cluster has, and whether one answers."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from grokfast.training.interrupt import SIGNALS


def capacity(resource: str) -> int:
    """How many groups the cluster can train at once, as it is now."""
    return int(load_ray().cluster_resources().get(resource, 0))


def knock(address: str) -> None:
    """ConnectionError where nobody listens at "host:port" or "ray://host:port"; Ray itself would try for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and port.isdecimal()):
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address}: {error}") from None


def load_ray() -> Any:
    """The module; ImportError naming the extra where it is not installed."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        with own_signals():
            import ray
    except ImportError:
        raise ImportError("ray is not installed: pip install 'grokfast[ray]'") from None
    return ray


@contextmanager
def own_signals() -> Iterator[None]:
    """Ray sets a handler of SIGTERM; it is not its to set.

    The processes that Ray starts meanwhile ignore SIGHUP: they are needed to save, where the terminal has gone.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS if number != signal.SIGINT}
    try:
        if hasattr(signal, "SIGHUP"):
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)
