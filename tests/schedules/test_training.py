"""Runs whose hyper-parameters, rows and batches change on the way: in both engines, resumed, in company."""

import signal

import pytest
import torch

from grokfast import EMA, Experiment, RunStore, backend, train
from grokfast.schedules import Cosine, Curriculum, PacedCurriculum, SwapOperands, Switch, Warmup
from grokfast.training import Interrupted, Observer, resume
from grokfast.training.ensemble import Ensemble, choice_of
from grokfast.training.moments import established
from grokfast.training.outcome import Outcome
from grokfast.training.replay import Replay
from grokfast.transforms import Chain
from tests.schedules.common import changed
from tests.training.common import same_result
from tests.transforms.own import Clamp, Orthogonal

QUICK = Experiment.preset("quick").override({
    "task.p": 11, "task.augment": "swap",
    "model.width": 64, "schedule.steps": 40, "schedule.eval_every": 4, "schedule.stop_after": None,
    "criteria.threshold": 0.6, "criteria.sustain": 2, "filter": EMA(0.9, 1.0), "device": "cpu",
})  # fmt: skip
NANDA = Experiment.preset("nanda").override({
    "task.p": 11, "task.augment": "swap",
    "model.d_model": 16, "model.n_heads": 2, "model.d_mlp": 24, "schedule.steps": 12,
    "schedule.eval_every": 4, "device": "cpu", "optimizer.warmup": 0,
})  # fmt: skip
RATES = (Warmup(steps=5), Cosine(begin=5), Switch(of="weight_decay", to=0.0, at=7))
AFTER = (Switch(of="lamb", to=0.0, after="memorizing", delay=3), Switch(of="lr", to=1e-4, after="generalizing"))


def eager(experiments, until=None):
    """Records and weights, step by step; as the loop does it."""
    ensemble = Ensemble(experiments)
    outcomes, records = [Outcome(e.criteria) for e in experiments], [[] for _ in experiments]
    steps = ensemble.schedule.steps if until is None else until
    while True:
        if ensemble.steps % ensemble.schedule.eval_every == 0 or ensemble.steps == steps:
            for outcome, own, record in zip(outcomes, records, ensemble.evaluate(goes_on=ensemble.steps < steps)):
                outcome.update(record)
                own.append(record)
        if ensemble.steps >= steps:
            return records, ensemble, outcomes
        if ensemble.optimizer.waits:
            ensemble.optimizer.reached.copy_(established(outcomes))
        ensemble.step()


def replayed(experiments):
    """The same by the functions that graphs hold."""
    ensemble = Ensemble(experiments)
    outcomes = [Outcome(e.criteria) for e in experiments]
    replay, records = Replay(ensemble, outcomes), [[] for _ in experiments]
    windows = [replay.evaluate()]
    while ensemble.steps < ensemble.schedule.steps:
        windows.append(replay.launch())
        for own, report in zip(records, windows.pop(0).read()):
            own.append(report.record)
    for own, report in zip(records, windows.pop().read()):
        own.append(report.record)
    return records, ensemble, replay


@pytest.mark.parametrize("base", [QUICK, NANDA])
@pytest.mark.parametrize(
    "changes",
    [
        RATES,
        AFTER,
        (Curriculum(steps=9, start=0.3),),
        (SwapOperands(),),
        (Curriculum(steps=9), SwapOperands(share=0.3)),
    ],
)
@pytest.mark.parametrize("batch_size", [None, 16])
def test_both_engines_do_the_same(base, changes, batch_size):
    base = base.override({"filter": EMA(0.9, 1.0), "schedule.batch_size": batch_size})
    experiments = [changed(base.override({"seed": i}), changes) for i in range(2)]
    with backend.using("reference"):
        found, ensemble, _ = eager(experiments)
        expected, theirs, _ = replayed(experiments)
        plain, _, _ = eager([base.override({"seed": i}) for i in range(2)])
    for own, their, without in zip(found, expected, plain):
        assert [r.step for r in own] == [r.step for r in their]
        for one, two in zip(own, their):
            assert one["train_loss"] == pytest.approx(two["train_loss"], rel=1e-5)
            assert one["weight_norm"] == pytest.approx(two["weight_norm"], rel=1e-6)
        assert own[-1]["weight_norm"] != without[-1]["weight_norm"] or changes == AFTER
    torch.testing.assert_close(ensemble.flat, theirs.flat, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("engine", ["auto", "reference"])
@pytest.mark.parametrize("changes", [RATES, AFTER, (Curriculum(steps=9, start=0.3), SwapOperands())])
def test_a_run_is_the_same_bits_in_company(engine, changes):
    experiments = [changed(QUICK.override({"seed": i}), changes) for i in range(3)]
    with backend.using(engine):
        together, ensemble, _ = eager(experiments)
        alone, single, _ = eager(experiments[1:2])
    assert together[1] == alone[0]
    assert torch.equal(ensemble.flat[1], single.flat[0])


def test_a_switch_takes_effect_after_the_evaluation_that_established_its_moment():
    changes = (Switch(of="lamb", to=50.0, after="memorizing", delay=2),)
    run = changed(QUICK, changes)
    records, _, (outcome,) = eager([run])
    at = outcome.memorizing.established
    assert outcome.t_memorize < at < 36  # two evaluations in a row
    plain, _, (before,) = eager([QUICK])
    assert before.memorizing.established == at
    assert [r for r in records[0] if r.step <= at] == [r for r in plain[0] if r.step <= at]
    fixed, _, _ = eager([changed(QUICK, (Switch(of="lamb", to=50.0, at=at + 2),))])
    assert records == fixed
    assert records != plain
    with backend.using("reference"):
        _, _, replay = replayed([run])
        _, _, (outcome,) = eager([run])
    assert replay.tables.reached[0].tolist() == [outcome.memorizing.established]


@pytest.mark.parametrize("changes", [RATES, AFTER, (Curriculum(steps=30, start=0.3), SwapOperands())])
@pytest.mark.parametrize("filter", [EMA(0.9, 1.0), Chain(Orthogonal(0.5), EMA(0.9, 1.0), Clamp(5.0))])
def test_it_goes_on_to_the_same_bits(changes, filter):
    run = changed(QUICK, changes, filter=filter)
    _, ensemble, _ = eager([run])
    _, first, outcomes = eager([run], until=20)
    further = Ensemble([run])
    further.restore(0, {name: t.clone() for name, t in first.checkpoint(0).items()}, 20)
    while further.steps < 40:
        if further.steps % 4 == 0 and further.steps > 20:
            outcomes[0].update(further.evaluate()[0])
        if further.optimizer.waits:
            further.optimizer.reached.copy_(established(outcomes))
        further.step()
    assert torch.equal(further.flat, ensemble.flat)


def test_runs_that_leave_change_nothing_for_the_others():
    experiments = [changed(QUICK.override({"seed": i}), (*RATES, Curriculum(steps=9))) for i in range(3)]
    _, whole, _ = eager(experiments, until=12)
    ensemble = Ensemble(experiments)
    for step in range(12):
        if step == 6:
            ensemble.keep([0, 2])
        ensemble.step()
    assert torch.equal(ensemble.flat, whole.flat[[0, 2]])


def test_an_unknown_hyper_parameter_is_named_before_the_first_step():
    with pytest.raises(ValueError, match=r"warmup changes 'alpah', .*did you mean 'alpha'"):
        Ensemble([changed(QUICK, (Warmup(steps=3, of="alpah"),))])
    with pytest.raises(ValueError, match="swap_operands needs a task whose answer does not depend on the order"):
        Ensemble([changed(QUICK.override({"task.operation": "sub", "task.augment": "none"}), (SwapOperands(),))])


class StopAt(Observer):
    def __init__(self, steps):
        self.steps = steps

    def stepped(self, steps):
        if steps == self.steps:
            signal.raise_signal(signal.SIGINT)


def test_an_interrupted_run_goes_on_in_the_store(tmp_path):
    experiment = QUICK.override({
        "filter": "tests.transforms.own:Orthogonal(share=0.5)+ema(alpha=0.9)+tests.transforms.own:Clamp(most=5.0)",
        "schedule.changes": "warmup(steps=5),cosine(begin=5),switch(of=lamb,to=0.0,after=memorizing,delay=3),"
        "curriculum(steps=20),swap_operands",
    })  # fmt: skip
    assert Experiment.from_dict(experiment.to_dict()) == experiment
    whole = train(experiment, store=RunStore(tmp_path / "whole"))
    with pytest.raises(Interrupted) as stopped:
        train(experiment, store=RunStore(tmp_path / "parts"), observers=[StopAt(30)])
    resumed = resume(stopped.value.run_ids[0], store=RunStore(tmp_path / "parts"))
    same_result(whole, resumed)


PACED = PacedCurriculum(start=0.25, increment=0.25, threshold=0.5)


class Shares(Observer):
    """Of one run the share of the rows that may be shown, as it is when the next step begins."""

    def __init__(self):
        self.found = {}

    def started(self, ensemble, run_ids):
        self.ensemble = ensemble

    def stepped(self, steps):
        rows = self.ensemble._shown[0](steps, steps + 1)[0]
        self.found[steps] = float(rows.double().mean())


def test_a_paced_curriculum_follows_the_recorded_evaluations():
    run, watch = changed(QUICK, (PACED,)), Shares()
    curves = train(run, observers=[watch]).curves
    share, expected = 0.25, {}
    for step, accuracy in zip(curves["step"].tolist(), curves["train_accuracy"].tolist()):
        share = min(1.0, share + 0.25) if accuracy >= 0.5 * share else share
        expected |= dict.fromkeys(range(step + 1, step + 4), share)
    n = len(run.task.build(seed=0).train)
    assert len({*expected.values()}) == 4
    assert expected[1] == 0.25
    assert all(watch.found[step] == -(-n * expected[step] // 1) / n for step in expected if step < 40)


@pytest.mark.parametrize("batch_size", [None, 16])
def test_paced_runs_are_the_same_in_company_and_as_others_end(batch_size, tmp_path):
    base = changed(QUICK, (PACED,), **{"schedule.batch_size": batch_size, "schedule.stop_after": 0})
    base = base.override({"criteria.generalize": "train"})
    experiments = [base.override({"seed": i, "criteria.threshold": threshold}) for i, threshold in
                   enumerate((0.15, 0.99, 0.3, 0.99))]  # fmt: skip
    together = train(experiments)
    assert len({run.steps for run in together}) > 1
    for experiment, run in zip(experiments, together):
        same_result(run, train(experiment))


def test_a_paced_run_goes_on_where_it_was_interrupted(tmp_path):
    experiment = changed(QUICK, (PACED,))
    whole = train(experiment, store=RunStore(tmp_path / "whole"))
    for at in (8, 9, 18):
        store = RunStore(tmp_path / str(at))
        with pytest.raises(Interrupted) as stopped:
            train(experiment, store=store, observers=[StopAt(at)])
        same_result(whole, resume(stopped.value.run_ids[0], store=store))


def test_what_follows_the_evaluations_is_not_replayed():
    def why(change):
        experiment = changed(QUICK.override({"device": "cuda"}), (change,))
        return choice_of(experiment, torch.device("cuda", 0), experiment.task.build()).why_no_replay

    with backend.using("reference"):
        assert why(PACED) == "paced_curriculum follows the evaluations"
        assert why(Curriculum(steps=9)) == ""
