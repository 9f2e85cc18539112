"""What is concluded on the device is what `Outcome` and the loop conclude on the host."""

import pytest
import torch

from grokfast import Experiment
from grokfast.store.records import STANDARD, Record
from grokfast.training.outcome import Outcome
from grokfast.training.watch import Watch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BASE = Experiment.preset("quick").override({"schedule.steps": 300, "criteria.sustain": 2})
RUNS = [
    BASE,  # to the last step
    BASE.override({"schedule.stop_after": 0}),
    BASE.override({"schedule.stop_after": 40}),
    BASE.override({"criteria.threshold": 0.5, "criteria.sustain": 1, "schedule.stop_after": 25}),
    BASE.override({"criteria.sustain": 4, "schedule.stop_after": 20}),
    BASE,  # diverges at 137
    BASE.override({"schedule.patience": 30, "schedule.stop_after": 10}),
    BASE.override({"schedule.patience": 0, "criteria.sustain": 3}),
    BASE.override({"schedule.patience": 200, "schedule.stop_after": 10}),
]


def evaluations(seed):
    """(step, measured [5, E], diverged_at [E]) every 10 steps; accuracies rise, and waver."""
    generator = torch.Generator().manual_seed(seed)
    for step in range(0, 301, 10):
        measured = torch.rand(5, len(RUNS), generator=generator)
        measured[2, 6:] = (measured[2, 6:] * 0.2 + step / 60).clamp(max=0.995)
        measured[3] = (measured[3] * 0.2 + step / 150).clamp(max=0.99)
        measured[3, 2] = float("nan") if step in (150, 160) else measured[3, 2]
        measured[3, 0] = torch.tensor(0.99)
        yield step, measured, torch.tensor([*[-1] * 5, 137 if step > 137 else -1, *[-1] * 3])


def is_over(experiment, outcome, step):
    stop_after, moment = experiment.schedule.stop_after, outcome.t_generalize
    late = stop_after is not None and moment is not None and step >= moment + stop_after
    patience, memorized = experiment.schedule.patience, outcome.t_memorize
    if moment is None and patience is not None and memorized is not None:
        late = step >= memorized + patience
    return step >= experiment.schedule.steps or late


@pytest.mark.parametrize("resumed_at", [0, 100])
def test_crossings_ends_and_last_weights(engine, resumed_at):
    outcomes = [Outcome(e.criteria) for e in RUNS]
    ended = [None] * len(RUNS)
    watch, weights, kept = None, torch.zeros(len(RUNS), 32, device=DEVICE), {}
    for step, measured, diverged_at in evaluations(0):
        if step == resumed_at:
            watch = Watch(RUNS, outcomes, weights)
        weights += 1
        values = measured.T.tolist()
        for outcome, row in zip(outcomes, values):
            outcome.update(Record(step, dict(zip(STANDARD, row))))
        if watch is None:
            continue
        watch.measured.copy_(measured)
        watch.update(weights, torch.full((len(RUNS),), step, device=DEVICE), diverged_at.to(DEVICE))
        for i, (experiment, outcome) in enumerate(zip(RUNS, outcomes)):
            if ended[i] is None and (diverged_at[i] >= 0 or is_over(experiment, outcome, step)):
                ended[i], kept[i] = step, weights[i].clone()
        moments = [-1 if o.t_generalize is None else o.t_generalize for o in outcomes]
        assert watch.generalized_at.tolist() == moments
        assert watch.ended_at.tolist() == [-1 if at is None else at for at in ended]
        expected = [
            [step, *row, *ends] for row, ends in zip(values, zip(diverged_at.tolist(), watch.ended_at.tolist()))
        ]
        torch.testing.assert_close(
            watch.report.cpu(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=0, equal_nan=True
        )
    assert ended[0] == 300
    assert ended[5] == 140
    assert all(at is not None for at in ended)
    assert ended[7] < ended[6] < ended[8] < 300 or resumed_at
    assert len(set(ended)) > 3
    for i, row in kept.items():
        assert torch.equal(watch.kept[i], row)


def test_many_models_take_several_programs(engine):
    runs = [BASE] * 200
    flat = torch.arange(200.0, device=DEVICE)[:, None].repeat(1, 16)
    watch = Watch(runs, [Outcome(e.criteria) for e in runs], flat)
    diverged_at = torch.full((200,), -1, device=DEVICE)
    diverged_at[[3, 199]] = 7
    watch.update(flat, torch.full((200,), 10, device=DEVICE), diverged_at)
    assert (watch.ended_at == 10).nonzero().flatten().tolist() == [3, 199]
    assert watch.kept[:, 0].nonzero().flatten().tolist() == [3, 199]
    assert watch.kept[199, 5] == 199
