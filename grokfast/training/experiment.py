"""`Experiment`: everything that determines a run, as one frozen dataclass tree that prints, saves and overrides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from grokfast import checks
from grokfast.filters import EMA, MA
from grokfast.nn import PairMLPConfig, TransformerConfig
from grokfast.seeds import MAX_SEED
from grokfast.tasks import ModularTask

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
        checks.choice("optimizer.name", self.name, get_args(OptimizerName))
        checks.real("optimizer.lr", self.lr, minimum=0)
        checks.real("optimizer.weight_decay", self.weight_decay, minimum=0)
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"optimizer.betas must be two numbers in [0, 1), got {self.betas!r}")
        for beta in self.betas:
            checks.real("optimizer.betas", beta, minimum=0, maximum=1, open_maximum=True)
        object.__setattr__(self, "betas", tuple(self.betas))
        checks.real("optimizer.eps", self.eps, minimum=0)
        checks.real("optimizer.momentum", self.momentum, minimum=0)
        checks.boolean("optimizer.nesterov", self.nesterov)
        if self.nesterov and self.momentum == 0:
            raise ValueError("optimizer.nesterov needs optimizer.momentum above 0, got 0")
        checks.integer("optimizer.warmup", self.warmup, minimum=0)


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
        checks.integer("schedule.steps", self.steps, minimum=1)
        checks.integer("schedule.eval_every", self.eval_every, minimum=1)
        for name, least in (("batch_size", 1), ("batch_seed", 0), ("stop_after", 0)):
            if getattr(self, name) is not None:
                checks.integer(f"schedule.{name}", getattr(self, name), minimum=least, maximum=MAX_SEED)


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
        checks.real("criteria.threshold", self.threshold, minimum=0, maximum=1, open_minimum=True)
        checks.integer("criteria.sustain", self.sustain, minimum=1)
        checks.integer("criteria.grok_gap", self.grok_gap, minimum=0)


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
        for name, kinds in _KINDS.items():
            if not isinstance(getattr(self, name), kinds):
                accepted = " or ".join(kind.__name__ for kind in kinds)
                raise TypeError(f"{name} must be a {accepted}, got {getattr(self, name)!r}")
        choices = {"loss": Loss, "precision": Precision, "products": Products, "engine": Engine}
        for name, options in choices.items():
            checks.choice(name, getattr(self, name), get_args(options))
        if self.products != "ieee" and self.precision != "float32":
            raise ValueError(f"products must be 'ieee' where precision is {self.precision!r}, got {self.products!r}")
        checks.integer("seed", self.seed, minimum=0, maximum=MAX_SEED)
        if isinstance(self.model, PairMLPConfig) and self.task.layout != "pair":
            raise ValueError(f"task.layout must be 'pair' for a PairMLP, got {self.task.layout!r}")

    @classmethod
    def preset(cls, name: str) -> Experiment:
        """A published recipe by name; ValueError lists them. See grokfast/training/presets.py."""
        from grokfast.training.presets import PRESETS

        return PRESETS[checks.choice("preset", name, PRESETS)]

    def override(self, changes: Mapping[str, Any]) -> Experiment:
        """A copy with dotted fields replaced: `exp.override({"optimizer.lr": 3e-3, "seed": 1})`.

        A whole part ("filter", "model", ...) is replaced before its fields are. Raises ValueError for an unknown name
        (and names the nearest), and whatever the fields' own checks raise.
        """
        result, known = self, list(self.flat())
        for path in sorted(changes, key=lambda path: path.count(".")):
            if path not in known and path not in _KINDS:
                raise ValueError(f"unknown option {path!r}{result.hint(path)}")
            result = _replace(result, path.split("."), changes[path])
            known = list(result.flat()) if path in _KINDS else known
        return result

    def hint(self, path: str) -> str:
        """What an unknown dotted name may have meant, in parentheses; empty where nothing is near."""
        if path.startswith("filter.") and self.filter is None:
            return " (the experiment has no filter: choose one first)"
        return checks.nearest(path, self.flat())

    def flat(self) -> dict[str, Any]:
        """Every leaf by its dotted name."""
        return dict(_leaves(self))

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` is the way back."""
        return to_plain(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """From `to_dict`'s result; raises ValueError or TypeError where it is none."""
        known = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in known:
                raise TypeError(f"not an experiment's dict: unknown field {name!r}{checks.nearest(name, known)}")
        parts = {name: _from_plain(name, value) for name, value in values.items()}
        try:
            return cls(**parts)
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


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for f in dataclasses.fields(node):
        value = getattr(node, f.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{f.name}.")
        else:
            yield prefix + f.name, value


def _replace(node: Any, path: list[str], value: Any) -> Any:
    name, *rest = path
    return dataclasses.replace(node, **{name: _replace(getattr(node, name), rest, value) if rest else value})


def to_plain(node: Any) -> Any:
    """An experiment, a part of one or a value as JSON values."""
    if not dataclasses.is_dataclass(node):
        return list(node) if isinstance(node, tuple) else node
    plain = {f.name: to_plain(getattr(node, f.name)) for f in dataclasses.fields(node)}
    return plain if isinstance(node, Experiment) else {"kind": type(node).__name__, **plain}


def _from_plain(name: str, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    fields = dict(value)
    kinds = {kind.__name__: kind for kind in _KINDS.get(name, ())}
    kind = kinds[checks.choice(f"{name}.kind", fields.pop("kind", None), kinds)]
    if "betas" in fields:
        fields["betas"] = tuple(fields["betas"])
    return kind(**fields)
