"""`Experiment`: everything that determines a run, as one frozen dataclass tree that prints, saves and overrides."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from grokfast import checks, parts
from grokfast.losses import CrossEntropy, Loss
from grokfast.models import PairMLPConfig
from grokfast.models.base import Model
from grokfast.parts import fields_of, names_of
from grokfast.probes.base import Probe
from grokfast.schedules.base import Change
from grokfast.seeds import MAX_SEED
from grokfast.tasks import ModularTask, Task
from grokfast.training import snapshots
from grokfast.transforms.base import Transform
from grokfast.transforms.optimizers import AdamW, Optimizer

Engine = Literal["auto", "reference"]
Precision = Literal["float32", "float64"]
Products = Literal["ieee", "tf32x3", "tf32", "bf16"]
# The fields of an experiment that are parts, and their families.
FAMILIES = {"task": "task", "model": "model", "loss": "loss", "optimizer": "optimizer", "filter": "transform"}
FAMILIES["probes"] = "probe"
OPTIONAL = ("filter",)
TUPLES = ("probes",)


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long, in which portions, and how often to look.

    Args:
        steps: optimizer steps at most.
        batch_size: rows of a step; None: the whole training set. Reshuffled every epoch, the last batch is smaller.
        batch_seed: order of the batches; None: the experiment's seed.
        eval_every: steps between evaluations on the training and the test set.
        stop_after: stop this many steps after generalising; None: run all steps.
        patience: stop this many steps after memorising where it has not generalised by then; None: run all steps.
        changes: what changes with the step, see grokfast.schedules; they may overlap in nothing.
        snapshots: after which steps the weights are kept in the store: "0,100,1000" or a sequence of steps;
            "every:500", from 0 on; "log:8", eight a decade, and 0; None: never.
        full_snapshots: keep all that resuming needs with them: `grokfast.branch` can begin there.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"batch_seed", "stop_after", "patience"})

    steps: int = 10_000
    batch_size: int | None = None
    batch_seed: int | None = None
    eval_every: int = 10
    stop_after: int | None = None
    changes: tuple[Change, ...] = parts.added(())
    snapshots: str | None = parts.added(None)
    full_snapshots: bool = parts.added(False)
    patience: int | None = parts.added(None)

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "schedule.")
        fields.integer("steps", "eval_every", minimum=1)
        fields.integer("batch_size", minimum=1, optional=True)
        fields.integer("batch_seed", minimum=0, maximum=MAX_SEED, optional=True)
        fields.integer("stop_after", "patience", minimum=0, optional=True)
        object.__setattr__(self, "changes", parts.several("change", self.changes, argument="schedule.changes"))
        object.__setattr__(self, "snapshots", snapshots.written("schedule.snapshots", self.snapshots))
        fields.boolean("full_snapshots")
        if (last := snapshots.Times(self.snapshots).last()) > self.steps:
            raise ValueError(f"schedule.snapshots must be at most schedule.steps, {self.steps}, got {last}")


@dataclass(frozen=True, kw_only=True)
class Criteria:
    """When a run has memorised and generalised, and what counts as grokking.

    Args:
        threshold: accuracy to reach on the split `memorize` to have memorised, on `generalize` to have generalised.
        sustain: evaluations in a row that must be at the threshold; the moment is the first of them.
        grok_gap: steps between the two from which it is grokking rather than comprehension. Liu et al. (2022, arXiv
            2205.10343) take 10³ at learning rates near 1e-3.
        memorize, generalize: the splits of the data.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"threshold", "sustain", "grok_gap"})

    threshold: float = 0.99
    sustain: int = 3
    grok_gap: int = 1000
    memorize: str = parts.added("train")
    generalize: str = parts.added("test")

    def __post_init__(self) -> None:
        fields = checks.Fields(self, "criteria.")
        fields.real("threshold", minimum=0, maximum=1, open_minimum=True)
        fields.integer("sustain", minimum=1)
        fields.integer("grok_gap", minimum=0)
        fields.text("memorize", "generalize")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One run: task, model, loss, optimizer, gradient filter, schedule, criteria, seed, precision, device.

    Parts may be given as they are, by name ("lion", "ma(window_size=50)"), or as mappings of "kind" and fields.

    Args:
        name: the preset it came from; run ids begin with it.
        task: data set and splits.
        model: network and initialisation.
        loss: "cross_entropy", "mse" against the one-hot answer, or another of grokfast.losses.
        optimizer: algorithm and hyper-parameters.
        filter: what is done to gradients or weights beside the optimizer: EMA, MA, a Chain, ..., or None.
        schedule: steps, batches, evaluations, what changes on the way.
        criteria: when it has memorised, generalised, grokked.
        probes: what is measured at each evaluation beside losses, accuracies and the norm of the weights.
        seed: of the initialisation, and of what task and schedule leave at None: split, label noise, batch order.
        precision: "float32" or "float64", of parameters, sums and, on "ieee", products.
        products: how kernels multiply fp32 matrices: "ieee", or on a GPU "tf32x3" (nearly as exact), "tf32" or "bf16",
            which change results. Where no kernel takes the model it is "ieee" after all, and the run says so.
        device: "auto" (a GPU if there is one), "cpu", "cuda", "cuda:1", ...
        engine: "auto" uses the fast paths, "reference" plain PyTorch everywhere, every position of every row.
        origin: a fork's: "RUN@STEP", the run of the same store, and the step of it, from whose state it goes on; None:
            it begins at its initialisation. `grokfast.branch` sets it.

    Raises TypeError or ValueError naming the field.
    """

    varies: ClassVar[frozenset[str]] = frozenset({"name", "seed"})

    name: str = "custom"
    task: Task = field(default_factory=ModularTask)
    model: Model = field(default_factory=PairMLPConfig)
    loss: Loss = field(default_factory=CrossEntropy)
    optimizer: Optimizer = field(default_factory=AdamW)
    filter: Transform | None = None
    schedule: Schedule = field(default_factory=Schedule)
    criteria: Criteria = field(default_factory=Criteria)
    probes: tuple[Probe, ...] = parts.added(())
    seed: int = 0
    precision: Precision = "float32"
    products: Products = "ieee"
    device: str = "auto"
    engine: Engine = "auto"
    origin: str | None = parts.added(None)

    def __post_init__(self) -> None:
        for name in FAMILIES:
            object.__setattr__(self, name, _part(name, getattr(self, name)))
        for name, kind in (("schedule", Schedule), ("criteria", Criteria)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {checks.shown(getattr(self, name))}")
        fields = checks.Fields(self)
        fields.text("name", "device")
        choices = {"precision": Precision, "products": Products, "engine": Engine}
        fields.choice(**{name: get_args(options) for name, options in choices.items()})
        if self.products != "ieee" and self.precision != "float32":
            raise ValueError(f"products must be 'ieee' where precision is {self.precision!r}, got {self.products!r}")
        fields.integer("seed", minimum=0, maximum=MAX_SEED)
        if self.origin is not None and (step := origin_of(self.origin)[1]) > self.schedule.steps:
            raise ValueError(f"schedule.steps must be at least the {step} of its origin, got {self.schedule.steps}")
        if why := self.model.why_not_task(self.task):
            raise ValueError(why)

    @classmethod
    def preset(cls, name: str) -> Experiment:
        """A published recipe by name; ValueError lists them. See grokfast/training/presets.py."""
        presets = importlib.import_module("grokfast.training.presets").PRESETS
        return presets[checks.choice("preset", name, presets)]

    def override(self, changes: Mapping[str, Any]) -> Experiment:
        """A copy with dotted fields replaced: `exp.override({"optimizer.lr": 3e-3, "filter": "ema", "seed": 1})`.

        A whole part is replaced before its fields are, and the fields of a part at once: those that fit only each other
        may come in any order. Of a kind that is chosen by name, what is not said stays as it is in a part of that kind,
        and another optimizer keeps the fields that both have. In a tuple of parts a field is named by its part's kind:
        "probes.norms.k".

        Raises ValueError for an unknown name (and names the nearest), TypeError where `changes` is no mapping of names,
        and whatever the fields' own checks raise.
        """
        if not isinstance(changes, Mapping) or not all(isinstance(path, str) for path in changes):
            raise TypeError(f"changes must map dotted names to values, got {checks.shown(changes)}")
        whole = {path: value for path, value in changes.items() if "." not in path}
        for path in whole:
            if path not in names_of(self):
                raise ValueError(f"unknown option {checks.shown(path)}{self.hint(path)}")
        new = dict(whole)
        for path in whole.keys() & FAMILIES:
            new[path] = _part(path, whole[path], getattr(self, path))
        fields: dict[str, dict[str, Any]] = {}
        nodes = fields_of(self) | new
        for path, value in changes.items():
            name, dot, rest = path.partition(".")
            if dot:
                fields.setdefault(name, {})[rest] = value
        for name, own in fields.items():
            if name not in nodes:
                path = f"{name}.{next(iter(own))}"
                raise ValueError(f"unknown option {checks.shown(path)}{_hint(path, nodes)}")
            new[name] = _replaced(nodes[name], own, name, nodes)
        return dataclasses.replace(self, **new)

    def hint(self, path: str) -> str:
        """What an unknown dotted name may have meant, in parentheses; empty where nothing is near."""
        return _hint(path, fields_of(self))

    def flat(self) -> dict[str, Any]:
        """Every leaf by its dotted name; a part is there, too, as the name of its kind."""
        return dict(_leaves(fields_of(self)))

    def varying(self) -> set[str]:
        """The dotted names in which runs that train together may differ."""
        names = {*self.varies}
        for name, value in fields_of(self).items():
            if name != "probes":  # which an ensemble has in common
                names |= {*parts.may_vary(name, value)}
        return names

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values; `from_dict` is the way back."""
        plain: dict[str, Any] = parts.to_plain(self)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """From `to_dict`'s result, of any version; raises ValueError or TypeError where it is none."""
        if not isinstance(values, Mapping):
            raise TypeError(f"not an experiment's dict: {checks.shown(values)}")
        known = names_of(cls)
        for name in values:
            if name not in known:
                raise TypeError(f"not an experiment's dict: unknown field {name!r}{checks.nearest(name, known)}")
        try:
            return cls(**{name: _from_plain(name, value) for name, value in values.items()})
        except (TypeError, ValueError) as error:
            raise (TypeError if isinstance(error, TypeError) else ValueError)(
                f"not an experiment's dict: {error}"
            ) from error


def origin_of(text: Any) -> tuple[str, int]:
    """The run and the step of an experiment's `origin`. Raises TypeError or ValueError where it says none."""
    run, _, step = checks.text("origin", text).rpartition("@")
    if not run or not (step.isascii() and step.isdigit()):
        raise ValueError(f"origin must be RUN@STEP, got {checks.shown(text)}")
    return run, checks.integer("origin", int(step), minimum=0)


def _part(name: str, said: Any, current: Any = None) -> Any:
    """The part, or parts, that are meant as the field `name`."""
    if name in TUPLES:
        return parts.several(FAMILIES[name], said, current or (), name)
    part = parts.chosen(FAMILIES[name], said, current, name)
    if part is None and name not in OPTIONAL:
        raise TypeError(f"{name} must be a {FAMILIES[name]}, got {checks.shown(said)}")
    return part


def _replaced(node: Any, fields: Mapping[str, Any], name: str, nodes: Mapping[str, Any]) -> Any:
    """A part, or a tuple of parts, with dotted fields replaced."""
    deeper: dict[str, dict[str, Any]] = {}
    own = {}
    for path, value in fields.items():
        at, dot, rest = path.partition(".")
        if dot:
            deeper.setdefault(at, {})[rest] = value
        else:
            own[at] = value
    if isinstance(node, parts.Part) and node.inline:
        several = _replaced(getattr(node, node.inline), fields, name, nodes)
        return dataclasses.replace(node, **{node.inline: several})  # type: ignore[type-var]
    if isinstance(node, tuple):
        there = parts.named([part for part in node if isinstance(part, parts.Part)])
        for at in (*deeper, *own):
            if at not in there or at in own:
                raise ValueError(f"unknown option {checks.shown(f'{name}.{at}')}{_hint(f'{name}.{at}', nodes)}")
        return tuple(_replaced(part, deeper.get(at, {}), f"{name}.{at}", nodes) for at, part in there.items())
    for at in (*own, *deeper):
        if at not in names_of(node):
            path = f"{name}.{at}"
            raise ValueError(f"unknown option {checks.shown(path)}{_hint(path, nodes)}")
    own |= {at: _replaced(getattr(node, at), rest, f"{name}.{at}", nodes) for at, rest in deeper.items()}
    return dataclasses.replace(node, **own) if own else node


def _hint(path: str, nodes: Mapping[str, Any]) -> str:
    if path.startswith("filter.") and nodes["filter"] is None:
        return " (the experiment has no filter: choose one first)"
    return checks.nearest(path, dict(_leaves(nodes)))


def _leaves(nodes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in nodes.items():
        yield from parts.leaves(name, value)


def _from_plain(name: str, value: Any) -> Any:
    if name in FAMILIES:
        return parts.from_plain(FAMILIES[name], value, name) if value is not None else None
    kind = {"schedule": Schedule, "criteria": Criteria}.get(name)
    if kind is None or not isinstance(value, Mapping):
        return value
    fields = {at: own for at, own in value.items() if at != "kind"}
    for at in fields:
        if at not in names_of(kind):
            raise TypeError(f"{name} has no field {at!r}{checks.nearest(at, names_of(kind))}")
    return kind(**{at: tuple(own) if isinstance(own, list) else own for at, own in fields.items()})


def check_together(experiments: Sequence[Experiment]) -> None:
    """Raise ValueError, naming the field, unless the experiments differ only in what an ensemble can hold."""
    first, varying = experiments[0].flat(), experiments[0].varying()
    for i, experiment in enumerate(experiments):
        other = experiment.flat()
        for name in first.keys() | other.keys():
            here, there = first.get(name), other.get(name)
            if (here != there and name not in varying) or (name in first) != (name in other):
                raise ValueError(
                    f"experiments[{i}].{name} is {there!r}, experiments[0].{name} is {here!r}; runs that train "
                    f"together may differ in {', '.join(sorted(varying))}"
                )
