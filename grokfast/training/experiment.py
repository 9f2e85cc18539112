"""`Experiment`: everything that determines a run, as one frozen dataclass tree that prints, saves and overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from grokfast import checks
from grokfast.models import PairMLPConfig, TransformerConfig
from grokfast.seeds import MAX_SEED
from grokfast.tasks import ModularTask
from grokfast.transforms.filters import EMA, MA

OptimizerName = Literal["adamw", "adam", "sgd", "lion"]
Loss = Literal["cross_entropy", "mse"]
Engine = Literal["auto", "reference"]
Precision = Literal["float32", "float64"]
Products = Literal["ieee", "tf32x3", "tf32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """torch.optim's AdamW (decoupled weight decay), Adam (L2) or SGD (L2, heavy-ball momentum).

    Args:
        name: "adamw", "adam" or "sgd".
        lr: learning rate.
        weight_decay: decoupled for adamw, L2 for the others.
        betas: decay of Adam's two averages.
        eps: added to the root of Adam's second average.
        momentum: of SGD.
        nesterov: Nesterov's form of the momentum.
        warmup: the rate is multiplied by min(1, step/warmup), so that the first step has rate 0.
    """

    name: OptimizerName = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.0
    nesterov: bool = False
    warmup: int = 0

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "optimizer.")
        fields.choice(name=get_args(OptimizerName))
        fields.real("lr", "weight_decay", "eps", "momentum", minimum=0, maximum=checks.LARGEST_REAL)
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1), got {checks.shown(self.betas)}")
        one, two = (
            checks.real("optimizer.betas", beta, minimum=0, maximum=1, open_maximum=True) for beta in self.betas
        )
        object.__setattr__(self, "betas", (one, two))
        fields.boolean("nesterov")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0, got 0")
        fields.integer("warmup", minimum=0)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, in which portions, and how often to look.

    Args:
        steps: optimizer steps at most.
        batch_size: rows of a step; None: the whole training set. Reshuffled every epoch, the last batch is smaller.
        batch_seed: order of the batches; None: the experiment's seed.
        eval_every: steps between evaluations on the training and the test set.
        stop_after: stop this many steps after generalising; None: run all steps.
    """

    steps: int = 10_000
    batch_size: int | None = None
    batch_seed: int | None = None
    eval_every: int = 10
    stop_after: int | None = None

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "schedule.")
        fields.integer("steps", "eval_every", minimum=1)
        fields.integer("batch_size", minimum=1, optional=True)
        fields.integer("batch_seed", minimum=0, maximum=MAX_SEED, optional=True)
        fields.integer("stop_after", minimum=0, optional=True)


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """When a run has memorised and generalised, and what counts as grokking.

    Args:
        threshold: accuracy to reach, on the training set to have memorised, on the test set to have generalised.
        sustain: evaluations in a row that must be at the threshold; the moment is the first of them.
        grok_gap: steps between the two from which it is grokking rather than comprehension. Liu et al. (2022, arXiv
            2205.10343) take 10³ at learning rates near 1e-3.
    """

    threshold: float = 0.99
    sustain: int = 3
    grok_gap: int = 1000

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "criteria.")
        fields.real("threshold", minimum=0, maximum=1, open_minimum=True)
        fields.integer("sustain", minimum=1)
        fields.integer("grok_gap", minimum=0)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: task, model, loss, optimizer, gradient filter, schedule, criteria, seed, precision, device.

    Args:
        name: the preset it came from; run ids begin with it.
        task: data set and split.
        model: network and initialisation.
        loss: "cross_entropy", or "mse" against the one-hot answer (mean over rows and classes).
        optimizer: algorithm and hyper-parameters.
        filter: gradient filter, EMA or MA, or None.
        schedule: steps, batches, evaluations.
        criteria: when it has memorised, generalised, grokked.
        seed: of the initialisation, and of what task and schedule leave at None: split, label noise, batch order.
        precision: "float32" or "float64", of parameters, sums and, on "ieee", products.
        products: how kernels multiply fp32 matrices: "ieee", or on a GPU "tf32x3" (nearly as exact), "tf32" or "bf16",
            which change results. Where no kernel takes the model it is "ieee" after all, and the run says so.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        engine: "auto" uses the fast paths, "reference" plain PyTorch everywhere, every position of every row.

    Raises TypeError or ValueError naming the field.
    """

    name: str = "custom"
    task: ModularTask = field(default_factory=ModularTask)
    model: PairMLPConfig | TransformerConfig = field(default_factory=PairMLPConfig)
    loss: Loss = "cross_entropy"
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    filter: EMA | MA | None = None
    schedule: Schedule = field(default_factory=Schedule)
    criteria: Criteria = field(default_factory=Criteria)
    seed: int = 0
    precision: Precision = "float32"
    products: Products = "ieee"
    device: str = "auto"
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        _check_kinds(vars(self))
        fields = checks.Fields(self)
        fields.text("name", "device")
        choices = {"loss": Loss, "precision": Precision, "products": Products, "engine": Engine}
        fields.choice(**{name: get_args(options) for name, options in choices.items()})
        if self.products != "ieee" and self.precision != "float32":
            raise ValueError(f"products must be 'ieee' where precision is {self.precision!r}, got {self.products!r}")
        fields.integer("seed", minimum=0, maximum=MAX_SEED)
        if isinstance(self.model, PairMLPConfig) and self.task.layout != "pair":
            raise ValueError(f"task.layout must be 'pair' for a PairMLP, got {self.task.layout!r}")

    @classmethod
    def preset(cls, name: str) -> Experiment:
        """A published recipe by name; ValueError lists them. See grokfast/training/presets.py."""
        from grokfast.training.presets import PRESETS

        return PRESETS[checks.choice("preset", name, PRESETS)]

    def override(self, changes: Mapping[str, Any]) -> Experiment:
        """A copy with dotted fields replaced: `exp.override({"optimizer.lr": 3e-3, "seed": 1})`.

        A whole part ("filter", "model", ...) is replaced before its fields are, and the fields of a part at once: those
        that fit only each other may come in any order. Raises ValueError for an unknown name (and names the nearest),
        TypeError where `changes` is no mapping of names, and whatever the fields' own checks raise.
        """
        if not isinstance(changes, Mapping) or not all(isinstance(path, str) for path in changes):
            raise TypeError(f"changes must map dotted names to values, got {checks.shown(changes)}")
        parts = vars(self) | {path: value for path, value in changes.items() if "." not in path}
        _check_kinds(parts)
        fields: dict[str, dict[str, Any]] = {}
        for path, value in changes.items():
            part, dot, name = path.partition(".")
            if part not in vars(self) or (dot and name not in _names(parts[part])):
                raise ValueError(f"unknown option {checks.shown(path)}{_hint(path, parts)}")
            if dot:
                fields.setdefault(part, {})[name] = value
        new = {part: dataclasses.replace(parts[part], **own) for part, own in fields.items()}
        return dataclasses.replace(self, **parts | new)

    def hint(self, path: str) -> str:
        """What an unknown dotted name may have meant, in parentheses; empty where nothing is near."""
        return _hint(path, vars(self))

    def flat(self) -> dict[str, Any]:
        """Every leaf by its dotted name."""
        return dict(_leaves(vars(self)))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` is the way back."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """From `to_dict`'s result; raises ValueError or TypeError where it is none."""
        if not isinstance(values, Mapping):
            raise TypeError(f"not an experiment's dict: {checks.shown(values)}")
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise TypeError(f"not an experiment's dict: unknown field {name!r}{checks.nearest(name, known)}")
        try:
            return cls(**{name: _from_plain(name, value) for name, value in values.items()})
        except TypeError as error:
            raise TypeError(f"not an experiment's dict: {error}") from error


_KINDS: dict[str, tuple[type, ...]] = {
    "task": (ModularTask,),
    "model": (PairMLPConfig, TransformerConfig),
    "optimizer": (OptimizerConfig,),
    "filter": (EMA, MA, type(None)),
    "schedule": (Schedule,),
    "criteria": (Criteria,),
}


def _check_kinds(parts: Mapping[str, Any]) -> None:
    for name, kinds in _KINDS.items():
        if not isinstance(parts[name], kinds):
            accepted = " or ".join(kind.__name__ for kind in kinds)
            raise TypeError(f"{name} must be a {accepted}, got {checks.shown(parts[name])}")


def _names(part: Any) -> list[str]:
    return [f.name for f in dataclasses.fields(part)] if dataclasses.is_dataclass(part) else []


def _hint(path: str, parts: Mapping[str, Any]) -> str:
    if path.startswith("filter.") and parts["filter"] is None:
        return " (the experiment has no filter: choose one first)"
    return checks.nearest(path, dict(_leaves(parts)))


def _leaves(parts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in parts.items():
        if dataclasses.is_dataclass(value):
            yield from ((f"{name}.{own}", getattr(value, own)) for own in _names(value))
        else:
            yield name, value


def to_plain(node: Any) -> Any:
    """An experiment, a part of one or a value as JSON values."""
    if not dataclasses.is_dataclass(node):
        return list(node) if isinstance(node, tuple) else node
    plain = {f.name: to_plain(getattr(node, f.name)) for f in dataclasses.fields(node)}
    return plain if isinstance(node, Experiment) else {"kind": type(node).__name__, **plain}


def _from_plain(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping) or name not in _KINDS:
        return value
    fields = dict(value)
    kinds = {kind.__name__: kind for kind in _KINDS[name]}
    return kinds[checks.choice(f"{name}.kind", fields.pop("kind", None), kinds)](**fields)
