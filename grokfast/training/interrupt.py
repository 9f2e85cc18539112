"""Ctrl-C, SIGTERM and SIGHUP as requests that training takes up between two steps."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
PATIENCE = 3.0  # seconds after the first request in which further ones mean the same
BURST = 0.1  # seconds without a request after which there will be no more of the same


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C, SIGTERM or SIGHUP; `run_ids` were saved and can be resumed."""

    def __init__(self, run_ids: Sequence[str]) -> None:
        super().__init__("training was interrupted")
        self.run_ids = list(run_ids)


class StopRequest:
    """Whether somebody has asked to stop, and is still asking when PATIENCE is over.

    With `at_once` the first request raises KeyboardInterrupt, else it is only noted. An urgent one always raises,
    except while something is saved.
    """

    def __init__(self, at_once: bool = False) -> None:
        self._at_once, self._is_saving = at_once, False
        self._first = self._last = float("-inf")

    def is_set(self) -> bool:
        """Whether there was a request."""
        return self._first > float("-inf")

    def is_urgent(self) -> bool:
        """Whether there was another one, too late to be the same."""
        return self._last - self._first > PATIENCE

    @contextmanager
    def saving(self) -> Iterator[None]:
        """For a block that no number of requests interrupts."""
        before, self._is_saving = self._is_saving, True
        try:
            yield
        finally:
            self._is_saving = before

    def take(self, signum: int, frame: FrameType | None) -> None:
        """The handler of SIGNALS."""
        is_first, self._last = not self.is_set(), time.monotonic()
        if is_first:
            self._first = self._last
        if not self._is_saving and (self.is_urgent() or (is_first and self._at_once)):
            raise KeyboardInterrupt

    def calm_down(self) -> None:
        """Wait, PATIENCE at most, until a burst of requests is over: its last would hit what comes next."""
        until = time.monotonic() + PATIENCE
        with self.saving():
            while time.monotonic() < min(self._last + BURST, until):
                time.sleep(BURST / 10)


@contextmanager
def stop_requests(at_once: bool = False) -> Iterator[StopRequest]:
    """SIGNALS become requests, so that no step and no save is torn apart. Main thread only."""
    stop = StopRequest(at_once)
    with handled(stop.take):
        try:
            yield stop
        finally:
            stop.calm_down()


@contextmanager
def handled(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """`handler` of SIGNALS for a block, main thread only; a SIGHUP that is ignored, as under nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}
    if before.get(getattr(signal, "SIGHUP", None)) is signal.SIG_IGN:
        del before[signal.SIGHUP]
    try:
        for number in before:
            signal.signal(number, handler)
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous or signal.SIG_DFL)  # None: it was not set from Python
