"""The arms of a comparison, as data. Spaces are wide and none is tuned by hand: rates from a fifth to five times of the
recipe's, and weight decay over two decades, for all that has them."""

from __future__ import annotations

from typing import Any

from grokfast.comparison.accelerator import Accelerator
from grokfast.comparison.space import Among, Log, Space
from grokfast.training import Experiment


def _share(factor: float, other: str, **fields: Any) -> Any:
    """Another optimizer at a share of the recipe's rate."""

    def changes(experiment: Experiment) -> dict[str, Any]:
        return {"optimizer": other, "optimizer.lr": float(f"{factor * experiment.optimizer.lr:.3g}"), **fields}

    return changes


_LR, _DECAY = "optimizer.lr", "optimizer.weight_decay"
_RATE: Space = {_LR: Log(0.2, 5, relative=True)}
_BOTH: Space = {**_RATE, _DECAY: Log(0.1, 10)}  # of all that AdamW decays
_ALPHA, _LAMB = Among(0.8, 0.9, 0.95, 0.98, 0.99), Log(0.2, 5)

_BASELINES = (
    Accelerator(name="plain", group="baseline", about="AdamW (arXiv 1711.05101), tuned.", changes={}, space=_BOTH),
    Accelerator(name="adam", group="as published", about="Adam without decay: the baseline of arXiv 2405.20233.",
        changes={"optimizer": "adam", _DECAY: 0.0}),
    Accelerator(name="paper-ema", group="as published", about="Grokfast-EMA as arXiv 2405.20233 has it.",
        changes={"optimizer": "adam", _DECAY: 0.005, "filter": "ema(alpha=0.98,lamb=2.0)"}),
    Accelerator(name="paper-ma", group="as published", about="Grokfast-MA as arXiv 2405.20233 has it.",
        changes={"optimizer": "adam", _DECAY: 0.01, "filter": "ma(window_size=100,lamb=5.0)"}),
)  # fmt: skip

_GRADIENT = (
    Accelerator(name="ema", group="gradient", about="Grokfast-EMA (arXiv 2405.20233).",
        changes={"filter": "ema"}, space={**_BOTH, "filter.lamb": _LAMB, "filter.alpha": _ALPHA}),
    Accelerator(name="ma", group="gradient", about="Grokfast-MA (arXiv 2405.20233).",
        changes={"filter": "ma"},
        space={**_BOTH, "filter.lamb": _LAMB, "filter.window_size": Among(5, 10, 20, 50, 100)}),
    Accelerator(name="multi-ema", group="gradient", about="Averages of two time scales.",
        changes={"filter": "multi_ema"},
        space={**_BOTH, "filter.lambs": Among((0.2, 0.2), (0.5, 0.5), (1.0, 1.0), (2.0, 2.0)),
               "filter.alphas": Among((0.5, 0.9), (0.8, 0.98), (0.9, 0.99))}),
    Accelerator(name="grokadamw", group="gradient", about="EMA, its α falling as the losses part; sees the test loss.",
        changes={"filter": "grokadamw"},
        space={**_BOTH, "filter.lamb": _LAMB, "filter.alpha": _ALPHA, "filter.kappa": Log(0.01, 1)}),
    Accelerator(name="orthograd", group="gradient", about="⊥Grad (arXiv 2501.04697), without decay as published.",
        changes={"filter": "orthograd"}, space=_BOTH, published={_DECAY: 0.0}),
    Accelerator(name="egd", group="gradient", about="Egalitarian gradient descent: equal singular values.",
        changes={"filter": "egd"}, space=_BOTH),
    Accelerator(name="sam", group="gradient", about="Sharpness-aware (arXiv 2010.01412), two gradients a step.",
        changes={"filter": "sam"}, space={**_BOTH, "filter.rho": Log(0.01, 0.5)}),
)  # fmt: skip

_WEIGHTS = (
    Accelerator(name="norm-clip", group="weights", about="Rows of matrices no longer than so, and no decay.",
        changes={"filter": "norm_clip(parameters=matrices)", _DECAY: 0.0},
        space={**_RATE, "filter.norm": Log(0.5, 10)}),
    Accelerator(name="norm-clip-lion", group="weights", about="The same with Lion, as in cliptogrok.",
        changes=_share(0.1, "lion", **{"filter": "norm_clip(parameters=matrices)", _DECAY: 0.0}),
        space={**_RATE, "filter.norm": Log(0.5, 10)}),
    Accelerator(name="norm-clamp", group="weights", about="All weights of one norm (arXiv 2606.13753), no decay.",
        changes={"filter": "norm_clamp", _DECAY: 0.0}, space={**_RATE, "filter.norm": Log(5, 100)}),
    Accelerator(name="spherical", group="weights", about="Rows of matrices of one norm, no decay.",
        changes={"filter": "spherical", _DECAY: 0.0}, space={**_RATE, "filter.norm": Log(0.3, 10)}),
    Accelerator(name="l1", group="weights", about="ℓ1 penalty (arXiv 2506.05718) in place of decay.",
        changes={"filter": "l1", _DECAY: 0.0}, space={**_RATE, "filter.strength": Log(1e-6, 1e-2)}),
    Accelerator(name="nuclear", group="weights", about="Nuclear-norm penalty (arXiv 2506.05718) in place of decay.",
        changes={"filter": "nuclear", _DECAY: 0.0}, space={**_RATE, "filter.strength": Log(1e-6, 1e-2)}),
    Accelerator(name="compression", group="weights", about="0.01 Σ‖W‖² once the run has memorised, no decay.",
        changes={"filter": "compression(start=memorizing)", _DECAY: 0.0},
        space={**_RATE, "filter.strength": Log(1e-4, 1e-1)}),
    Accelerator(name="late-decay", group="weights", about="Weight decay that changes once the run has memorised.",
        changes={"schedule.changes": "switch(of=weight_decay,to=3.0,after=memorizing)"},
        space={**_BOTH, "schedule.changes.switch.to": Log(0.1, 10)}),
)  # fmt: skip

_OPTIMIZERS = (
    Accelerator(name="lion", group="optimizer", about="Lion (arXiv 2302.06675), at rates of a tenth.",
        changes=_share(0.1, "lion", **{_DECAY: 10.0}), space={**_RATE, _DECAY: Log(1, 100)}),
    Accelerator(name="muon", group="optimizer", about="Muon, its rate and decay AdamW's (arXiv 2502.16982).",
        changes={"optimizer": "muon(adjust_lr_fn=match_rms_adamw)"}, space=_BOTH),
    Accelerator(name="schedule-free", group="optimizer", about="Schedule-free AdamW (arXiv 2405.15682).",
        changes={"optimizer": "schedule_free"}, space=_BOTH),
    Accelerator(name="sgd", group="optimizer", about="Gradient descent with momentum 0.9.",
        changes={"optimizer": "sgd(momentum=0.9)", _LR: 0.3, _DECAY: 0.001},
        space={_LR: Log(0.01, 10), _DECAY: Log(1e-5, 1e-2)}),
)  # fmt: skip

_LOSSES = (
    Accelerator(name="stablemax", group="loss", about="StableMax cross entropy (arXiv 2501.04697).",
        changes={"loss": "stablemax"}, space=_BOTH),
    Accelerator(name="temperature", group="loss", about="Logits divided by a temperature (arXiv 2606.18465).",
        changes={"loss.temperature": 1.0}, space={**_BOTH, "loss.temperature": Log(0.2, 20)}),
    Accelerator(name="label-smoothing", group="loss", about="Label smoothing (arXiv 1512.00567).",
        changes={"loss.label_smoothing": 0.1}, space={**_BOTH, "loss.label_smoothing": Log(0.02, 0.5)}),
    Accelerator(name="mse", group="loss", about="Squared error against the one-hot answer.", changes={"loss": "mse"},
        space=_BOTH),
)  # fmt: skip

BASE, PUBLISHED = "plain", "adam"  # what all are compared with: tuned AdamW, and the untuned baseline of the paper
ARMS: dict[str, Accelerator] = {arm.name: arm for arm in (*_BASELINES, *_GRADIENT, *_WEIGHTS, *_OPTIMIZERS, *_LOSSES)}
