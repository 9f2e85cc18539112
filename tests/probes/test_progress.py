"""The probe of progress measures, beside the analysis that it is of."""

import numpy as np
import pytest
import torch

from grokfast import Experiment, train
from grokfast.analysis import progress_measures
from grokfast.probes import Progress
from grokfast.tasks import ModularTask, ParityTask

SMALL = Experiment.preset("quick").override(
    {"task.p": 13, "model.width": 32, "schedule.steps": 60, "schedule.eval_every": 20, "probes": "progress",
     "device": "cpu"}
)  # fmt: skip


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"task.operation": "sub", "task.label_noise": 0.2},
        {"model": "transformer(d_model=16, n_heads=2, d_mlp=16, outputs=tokens)", "task.layout": "equals"},
        {"task.augment": "swap"},
    ],
)
def test_columns_are_the_analysis_of_the_weights(change):
    experiments = [  # of different sizes, in one ensemble
        SMALL.override(
            {**change, "seed": s, "task.train_fraction": 0.4 + 0.2 * s, "probes": (Progress(threshold=0.02),)}
        )
        for s in range(2)
    ]
    for run in train(experiments):
        found = progress_measures(run, threshold=0.02)
        assert run.final["key_frequencies"] == len(found.frequencies[0])
        assert run.final["restricted_loss"] == pytest.approx(found.restricted.item(), rel=1e-4)
        assert run.final["excluded_loss"] == pytest.approx(found.excluded.item(), rel=1e-4)


def test_a_run_that_leaves_takes_its_tables_along():
    experiments = [  # the first is over at once, and the ensemble goes on with the second alone
        SMALL.override(
            {"seed": s, "task.train_fraction": 0.4 + 0.2 * s, "criteria.threshold": 1e-9 if s == 0 else 1.0,
             "criteria.sustain": 1, "schedule.stop_after": 0}
        )
        for s in range(2)
    ]  # fmt: skip
    first, second = train(experiments)
    assert first.steps < second.steps
    for name, column in train(experiments[1]).curves.items():
        np.testing.assert_array_equal(second.curves[name], column)


def test_without_a_key_frequency_nothing_is_restricted_to_or_excluded():
    run = train(SMALL.override({"probes": (Progress(threshold=0.99),), "schedule.steps": 20}))
    assert run.final["key_frequencies"] == 0
    assert run.final["excluded_loss"] == pytest.approx(run.final["train_loss"], rel=1e-4)
    logits = run.experiment.model.build(run.experiment.task.build())
    for name, weights in logits.named_parameters():
        weights.data[0] = run.weights[name]
    pairs = torch.cartesian_prod(torch.arange(13), torch.arange(13))
    rows = logits(pairs)[0].detach()
    constant = (rows - rows.mean(1, keepdim=True)).mean(0)  # alike for all rows
    targets = run.experiment.task.build().test.targets
    expected = torch.nn.functional.cross_entropy(constant.expand(len(targets), 13), targets)
    assert run.final["restricted_loss"] == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task": ModularTask(operation="mul", p=13)}, r"task must be a \+ b or a - b mod p"),
        ({"task": ModularTask(p=13, b_nonzero=True)}, "probe progress is of tasks whose rows are all 13² pairs"),
        ({"task": ParityTask(), "model": "mlp", "loss": "hinge"}, "task must ask one answer to two operands"),
    ],
)
def test_other_tasks_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        train(SMALL.override(change))


def test_bad_input_is_told():
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\), got 1"):
        Progress(threshold=1)
