"""Runs of different training fractions in one ensemble: each is itself alone."""

import dataclasses
import signal

import pytest
import torch

from grokfast import EMA, MA, Experiment, backend, train
from grokfast.models import TransformerConfig
from grokfast.models.autograd import Autograd
from grokfast.store import RunStore
from grokfast.training import Interrupted, Observer, ensemble, resume
from grokfast.training.ensemble import Ensemble, check_together
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay
from grokfast.training.waves import bytes_per_run
from tests.training.common import same_result

TINY = Experiment.preset("quick").override({"task.p": 13, "model.width": 33})
SMALL = {"task.p": 11, "model.d_model": 16, "model.d_mlp": 24}
DROPOUT = TransformerConfig(d_model=16, n_heads=2, d_mlp=24, norm="pre", dropout=0.1)
CASES = {
    "mlp": TINY,
    "mlp deep mse": TINY.override({"model.depth": 2, "loss": "mse", "filter": EMA()}),
    "mlp stratified, fp64": TINY.override(
        {"task.stratified": True, "precision": "float64", "model.activation": "gelu"}
    ),
    "mlp minibatch": TINY.override({"schedule.batch_size": 20, "filter": MA(4)}),
    "mlp minibatch larger than a set": TINY.override({"schedule.batch_size": 60}),
    "transformer": Experiment.preset("nanda").override(SMALL),
    "transformer minibatch": Experiment.preset("power").override({**SMALL, "schedule.batch_size": 44}),
    "transformer fp64": Experiment.preset("power").override({**SMALL, "precision": "float64"}),
    "transformer dropout": Experiment.preset("nanda").override({"task.p": 11, "model": DROPOUT}),
}


def fractions(base):
    """The smallest set in the middle, so that neither the first nor the last is what the others are padded to."""
    return [
        base.override({"task.train_fraction": 0.5, "task.label_noise": 0.2}),
        base.override({"task.train_fraction": 0.3, "seed": 1, "optimizer.lr": 3e-3}),
        base.override({"task.train_fraction": 0.8, "seed": 2, "task.label_noise": 0.1}),
    ]


def advance(experiments, steps):
    made = Ensemble(experiments)
    for _ in range(steps):
        made.step()
    return made


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_together_they_are_each_alone_bit_for_bit(case, engine):
    with backend.using(engine):
        experiments = fractions(CASES[case])
        together = Ensemble(experiments)
        alone = [Ensemble([experiment]) for experiment in experiments]
        for i in range(13):
            if i % 4 == 0:
                assert together.evaluate(goes_on=True) == [own.evaluate()[0] for own in alone]
            for made in (together, *alone):
                made.step()
        for e, own in enumerate(alone):
            assert torch.equal(together.flat[e], own.flat[0])


@pytest.mark.parametrize("case", CASES)
def test_those_who_leave_and_those_who_resume_disturb_no_one(case):
    experiments = fractions(CASES[case])
    whole = advance(experiments, 12)
    part = advance(experiments, 7)
    states = [{name: t.clone() for name, t in part.checkpoint(e).items()} for e in range(3)]
    part.keep([0, 1])  # the largest is gone
    assert part.rows["train"].targets.shape[1] == max(part.rows["train"].counts)
    resumed = Ensemble(experiments[::-1])
    for e in range(3):
        resumed.restore(e, states[2 - e], 7)
    for made in (part, resumed):
        for _ in range(5):
            made.step()
    assert torch.equal(part.flat, whole.flat[:2])
    assert torch.equal(resumed.flat, whole.flat.flip(0))
    assert part.evaluate() == whole.evaluate()[:2]


def test_what_one_has_not_repeats_its_first_row():
    made = Ensemble(fractions(TINY))
    assert {split: rows.counts for split, rows in made.rows.items()} == {"train": [84, 50, 135], "test": [85, 119, 34]}
    assert made.runs.is_ragged
    for e, n in enumerate(made.rows["train"].counts):
        assert made.rows["train"].inputs[e, :n].unique(dim=0).shape[0] == n
        assert (made.rows["train"].inputs[e, n:] == made.rows["train"].inputs[e, 0]).all()
        assert (made.rows["train"].targets[e, n:] == made.rows["train"].targets[e, 0]).all()


@pytest.mark.parametrize("case", [name for name in CASES if "fp64" in name] + ["mlp minibatch larger than a set"])
def test_all_at_once_as_on_a_gpu_is_one_after_the_other(case):
    made = Ensemble(fractions(CASES[case].override({"precision": "float64"})))
    chosen, grad = made._chosen(), torch.zeros_like(made.flat)
    loss, accuracy, expected = made.gradient(chosen)
    right = made.measure("test")
    made.compute = Autograd(made.runs)
    made.compute.one_by_one = False
    found = [torch.empty_like(loss) for _ in range(2)]
    made.compute.gradient(made.flat, grad, found[0], chosen, found[1])
    torch.testing.assert_close((*found, grad), (loss, accuracy, expected), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(made.measure("test"), right, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("change", [{}, {"schedule.batch_size": 20}, {"schedule.batch_size": 60}])
@pytest.mark.parametrize("together", [3, 2])
def test_trained_to_their_ends_in_waves_and_in_a_replay(replayed, change, together):
    soon = {"criteria.threshold": 1e-9, "criteria.sustain": 2, "schedule.stop_after": 0}
    base = TINY.override({**change, "schedule.steps": 25, "schedule.eval_every": 4})
    experiments = fractions(base)
    experiments[2] = experiments[2].override(soon)
    results = train(experiments, max_together=together)
    assert [result.steps for result in results] == [25, 25, 4]
    for result, experiment in zip(results, experiments):
        same_result(result, train(experiment))


class Stop(Observer):
    def stepped(self, steps):
        if steps == 13:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("case", ["mlp", "transformer minibatch"])
def test_a_stored_ensemble_that_was_stopped_goes_on(tmp_path, case):
    experiments = fractions(CASES[case].override({"schedule.steps": 25, "schedule.eval_every": 4}))
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(experiments, store=store, observers=[Stop()])
        for run_id, experiment in zip(stopped.value.run_ids, experiments):
            same_result(resume(run_id, store), train(experiment))


@pytest.mark.parametrize(
    "change", [{}, {"schedule.batch_size": 9}, {"model.activation": "square", "loss": "mse", "filter": EMA()}]
)
def test_in_the_kernels_they_are_each_alone_bit_for_bit(change):
    """Interpreted where there is no GPU. With batches of 9, one has fewer rows than that."""
    pytest.importorskip("triton")
    small = {"task.p": 5, "model.width": 10, "schedule.steps": 4, "schedule.eval_every": 2}
    experiments = fractions(TINY.override({**small, **change}))
    with backend.using("triton"):
        for result, experiment in zip(train(experiments), experiments):
            same_result(result, train(experiment))


@pytest.mark.parametrize("batch_size", [None, 8])
def test_a_transformers_steps_are_each_alone_to_rounding(monkeypatch, batch_size):
    """Its tables are those of all data sets, so that sums have another order; in fp64 that is nothing."""
    small = {**SMALL, "task.p": 7, "model.d_mlp": 16, "model.n_heads": 2, "schedule.batch_size": batch_size}
    experiments = fractions(Experiment.preset("power").override({**small, "precision": "float64", "schedule.steps": 8}))
    choose = ensemble.choose

    def kernels(spec, why):
        return dataclasses.replace(choose(spec, why), step=spec.model.ways[0], why_no_replay="")

    monkeypatch.setattr(ensemble, "choose", kernels)
    with backend.using("reference"):
        replays = [
            Replay(Ensemble(some), [Outcome(e.criteria) for e in some])
            for some in (experiments, *([e] for e in experiments))
        ]
        for replay in replays:
            replay.evaluate()
        together, *alone = ([report.record for report in replay.launch().read()] for replay in replays)
    for record, (own,) in zip(together, alone):
        assert dict(record.values) == pytest.approx(dict(own.values), rel=1e-9)


def test_memory_is_planned_for_the_largest_of_all():
    both = [TINY.override({"task.train_fraction": fraction}) for fraction in (0.1, 0.9)]
    alone, together = ([bytes_per_run(e, among=others) for e in both] for others in ([], both))
    assert together[0] == together[1]
    data = [
        sum(t.nbytes for t in [t for rows in made.rows.values() for t in (rows.inputs, rows.targets)])
        for made in (Ensemble(both[:1]), Ensemble(both[1:]), Ensemble(both))
    ]
    assert [2 * (together[0].held - own.held) for own in alone] == [data[2] - 2 * data[0], data[2] - 2 * data[1]]
    assert together[0].passing >= max(own.passing for own in alone)


def test_what_changes_more_than_the_size_is_refused():
    with pytest.raises(ValueError, match=r"experiments\[1\].task.p"):
        check_together([TINY, TINY.override({"task.p": 17, "task.train_fraction": 0.3})])
