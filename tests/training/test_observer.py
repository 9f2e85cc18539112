import pytest

from grokfast import Experiment, RunStore, sweep, train
from grokfast.sweeps import InProcess, SweepObserver
from grokfast.training import Observer
from grokfast.training.sinks import SafeSink

TINY = Experiment.preset("quick").override({"task.p": 13, "model.width": 16, "schedule.steps": 20, "device": "cpu"})


class Broken(Observer, SweepObserver):
    def __init__(self, at):
        self.at = at

    def _at(self, name):
        if name == self.at:
            raise OSError("connection lost")

    def recorded(self, run, record, outcome):
        self._at("recorded")

    def finished(self, run, result):
        self._at("finished")

    def ended(self, result):
        self._at("ended")


class Counting(Observer):
    n = 0

    def finished(self, run, result):
        self.n += 1


def test_a_result_stands_whatever_observers_do_with_it(tmp_path):
    others, two = Counting(), [TINY, TINY.override({"seed": 1})]
    with RunStore(tmp_path) as store:
        with pytest.warns(
            UserWarning, match=r"the result stands, but Broken.finished failed: OSError: connection lost"
        ):
            results = train(two, store=store, observers=[Broken("finished"), others])
        assert [store.get(result.run_id).status for result in results] == ["finished"] * 2
    assert others.n == 2


def test_a_sweep_stands_whatever_observers_do_with_it(tmp_path):
    with pytest.warns(UserWarning, match=r"Broken.ended failed: OSError: connection lost"):
        result = sweep(TINY, {"seed": [0]}, store=tmp_path, runner=InProcess(), observers=[Broken("ended")])
    assert result.runs[0].status == "finished"


def test_an_observer_can_still_end_a_run(tmp_path):
    with RunStore(tmp_path) as store:
        with pytest.raises(OSError, match="connection lost"):
            train(TINY, store=store, observers=[Broken("recorded")])
        assert [run.status for run in store.list()] == ["failed"]


class Sink:
    def __init__(self, fails_at=()):
        self.fails_at, self.taken = fails_at, []

    def record(self, record):
        self.taken.append(record)
        if record in self.fails_at:
            raise OSError(28, "No space left on device")

    def close(self, result):
        self.taken.append(result)
        raise RuntimeError("was lost before")


def test_a_sink_that_fails_is_closed_and_left_alone():
    inner = Sink(fails_at=[1])
    sink = SafeSink(inner, "TensorBoard")
    sink.record(0)
    with pytest.warns(UserWarning, match=r"TensorBoard takes no more: OSError: .* No space left on device"):
        sink.record(1)
    sink.record(2)
    sink.close({})
    assert inner.taken == [0, 1, {}]
