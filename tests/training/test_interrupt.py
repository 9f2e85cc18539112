"""Requests to stop: what is one request, what is urgent, and what is never interrupted."""

import signal
import threading

import pytest

from grokfast.training import interrupt
from grokfast.training.interrupt import SIGNALS, handled, stop_requests

needs_hangup = pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="no SIGHUP here")


@pytest.fixture
def clock(monkeypatch):
    """time.monotonic and time.sleep of the module, as a list with the present second."""
    now = [100.0]
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(interrupt.time, "sleep", lambda seconds: now.append(now.pop() + seconds))
    return now


def handlers():
    return [signal.getsignal(number) for number in SIGNALS]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_a_request(number):
    before = handlers()
    with stop_requests() as stop:
        assert not stop.is_set()
        signal.raise_signal(number)
        assert stop.is_set()
    assert handlers() == before


def test_many_at_once_are_one_request(clock):
    with stop_requests() as stop:
        for _ in range(100):
            signal.raise_signal(signal.SIGINT)
            clock[0] += interrupt.PATIENCE / 200
        assert stop.is_set()
        assert not stop.is_urgent()


def test_another_one_much_later_raises_at_once(clock):
    with stop_requests() as stop:
        signal.raise_signal(signal.SIGINT)
        clock[0] += interrupt.PATIENCE + 1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert stop.is_urgent()


def test_what_is_being_saved_is_not_interrupted(clock):
    with stop_requests() as stop, stop.saving():
        with stop.saving():
            signal.raise_signal(signal.SIGINT)
        clock[0] += interrupt.PATIENCE + 1
        signal.raise_signal(signal.SIGINT)
        assert stop.is_urgent()


def test_at_once_the_first_raises_and_its_repetitions_do_not(clock):
    with stop_requests(at_once=True) as stop:
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.is_set()


def test_the_handlers_stay_until_a_burst_is_over(clock, monkeypatch):
    sent = []

    def sleep(seconds):
        clock[0] += seconds
        if len(sent) < 4:
            sent.append(seconds)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(interrupt.time, "sleep", sleep)
    with stop_requests():
        signal.raise_signal(signal.SIGINT)
        begun = clock[0]
    assert len(sent) == 4
    assert interrupt.BURST < clock[0] - begun < interrupt.PATIENCE


def test_nothing_is_waited_for_without_a_request(monkeypatch):
    monkeypatch.setattr(interrupt.time, "sleep", lambda seconds: pytest.fail("it waited"))
    with stop_requests():
        pass


@needs_hangup
def test_a_hangup_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as stop:
            signal.raise_signal(signal.SIGHUP)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_leave_handlers_alone():
    found = []

    def look():
        with handled(lambda signum, frame: None):
            found.append(handlers())

    before = handlers()
    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    assert found == [before]
