"""Dropout and label smoothing that change with the step, and dropout in replayed steps."""

import numpy as np
import pytest
import torch

from grokfast import Experiment, RunStore, backend, train
from grokfast.models.runs import Runs
from grokfast.schedules import Switch
from grokfast.training import Interrupted, loop, resume
from grokfast.training.engines import Eager
from grokfast.training.ensemble import Ensemble
from tests.training.common import StopAt, same_result

SMALL = Experiment.preset("power").override(
    {
        "task.p": 7, "model.d_model": 16, "model.n_heads": 2, "model.d_mlp": 24, "model.n_layers": 1, "device": "cpu",
        "schedule.steps": 14, "schedule.batch_size": 8, "schedule.eval_every": 4, "schedule.stop_after": None,
    }
)  # fmt: skip
WHOLE = SMALL.override({"schedule.batch_size": None})
LATE = {"schedule.changes": (Switch(of="dropout", to=0.5, at=6),)}
SMOOTH = {"schedule.changes": (Switch(of="loss.label_smoothing", to=0.3, at=6),)}


@pytest.fixture
def on_device(monkeypatch):
    """Masks as they are drawn on a GPU."""
    made = Runs.__init__

    def init(self, *arguments, **options):
        made(self, *arguments, **options)
        self.has_keys = True

    monkeypatch.setattr(Runs, "__init__", init)


@pytest.mark.parametrize("base", [SMALL, WHOLE])
def test_until_it_changes_nothing_has_changed(how, base):
    """At step 6 the first thing that differs; evaluations are at 0, 4, 8, ..."""
    plain, late = train(base), train(base.override(LATE))
    np.testing.assert_allclose(late.curves["train_loss"][:2], plain.curves["train_loss"][:2], rtol=1e-5)
    assert late.curves["train_loss"][2] != pytest.approx(plain.curves["train_loss"][2], rel=1e-4)


@pytest.mark.parametrize("base", [SMALL, WHOLE])
def test_changed_at_step_0_it_is_the_option(how, base):
    always = train(base.override({"schedule.changes": (Switch(of="model.dropout", to=0.25, at=0),)}))
    option = train(base.override({"model.dropout": 0.25}))
    for name in ("train_loss", "test_loss", "weight_norm"):
        np.testing.assert_allclose(always.curves[name], option.curves[name], rtol=1e-4)
    smooth = train(base.override({"schedule.changes": (Switch(of="label_smoothing", to=0.25, at=0),)}))
    option = train(base.override({"loss": "cross_entropy(label_smoothing=0.25)"}))
    for name in ("train_loss", "test_loss", "weight_norm"):
        np.testing.assert_allclose(smooth.curves[name], option.curves[name], rtol=1e-4)


@pytest.mark.parametrize("changes", [LATE, SMOOTH, {"model.dropout": 0.2}])
@pytest.mark.parametrize("base", [SMALL, WHOLE])
def test_in_company_interrupted_and_resumed_the_bits_are_the_same(how, tmp_path, base, changes):
    experiments = [base.override({**changes, "seed": seed}) for seed in (0, 1)]
    together = train(experiments)
    same_result(together[1], train(experiments[1]))
    with RunStore(tmp_path) as store:
        with pytest.raises(Interrupted) as stopped:
            train(experiments[0], store=store, observers=[StopAt(7)])
        same_result(resume(stopped.value.run_ids[0], store), together[0])


AFTER = {
    "schedule.changes": (
        Switch(of="dropout", to=0.5, after="memorizing"),
        Switch(of="label_smoothing", to=0.2, after="memorizing", delay=2),
    ),
    "criteria.threshold": 0.05, "criteria.sustain": 2,
}  # fmt: skip


@pytest.mark.parametrize("changes", [LATE, SMOOTH, AFTER, {"model.dropout": 0.2}])
@pytest.mark.parametrize("base", [SMALL, WHOLE])
def test_a_replay_does_what_steps_do(replayed, on_device, base, changes):
    """Runs of different sizes, too: their masks are those of their own rows."""
    experiments = [
        base.override({**changes, "seed": seed, "task.train_fraction": f}) for seed, f in ((0, 0.5), (1, 0.4))
    ]
    results = train(experiments)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loop, "Replay", Eager)
        for result, expected in zip(results, train(experiments)):
            same_result(result, expected)


def test_a_switch_after_a_moment_begins_with_the_next_step(how):
    plain, after = train(WHOLE.override({**AFTER, "schedule.changes": ()})), train(WHOLE.override(AFTER))
    assert plain.t_memorize is not None
    known = plain.t_memorize + 4  # the second evaluation in a row
    steps = plain.curves["step"]
    np.testing.assert_allclose(
        plain.curves["train_loss"][steps <= known], after.curves["train_loss"][steps <= known], rtol=1e-5
    )
    assert after.curves["weight_norm"][-1] != pytest.approx(plain.curves["weight_norm"][-1], rel=1e-6)


def test_masks_on_the_device_depend_on_seed_and_step_alone(on_device):
    with backend.using("reference"):
        ensemble = Ensemble([SMALL.override({"model.dropout": 0.5, "seed": s}) for s in (0, 1)])
        x = torch.ones(2, 6, 5)
        first = ensemble.runs.masks().keep(x, 0.5)
        assert torch.equal(first, ensemble.runs.masks().keep(x, 0.5))
        assert not torch.equal(first[0], first[1])
        ensemble.step()
        second = ensemble.runs.masks().keep(x, 0.5)
        assert not torch.equal(first, second)
        ensemble.keep([1])
        assert torch.equal(ensemble.runs.masks().keep(x[:1], 0.5)[0], second[1])


@pytest.mark.parametrize(
    ("of", "to", "message"),
    [
        ("dropout", 1.0, "schedule.changes make 'model.dropout' 1: dropout must be in"),
        ("label_smoothing", -0.1, "schedule.changes make 'loss.label_smoothing' -0.1: loss.label_smoothing must be in"),
        ("model.width", 3.0, "switch changes 'model.width', which is none of"),
    ],
)
def test_values_that_a_field_does_not_take(of, to, message):
    with pytest.raises(ValueError, match=message):
        train(SMALL.override({"schedule.changes": (Switch(of=of, to=to, at=3),)}))


def test_a_model_that_has_no_such_field_says_so():
    quick = Experiment.preset("quick").override({"task.p": 7, "schedule.steps": 5})
    with pytest.raises(ValueError, match="switch changes 'momentum', which is none of"):
        train(quick.override({"schedule.changes": (Switch(of="momentum", to=0.1, at=2),)}))
    with pytest.raises(ValueError, match="switch changes 'label_smoothing', which is none of"):
        train(quick.override({"loss": "mse", "schedule.changes": (Switch(of="label_smoothing", to=0.1, at=2),)}))
