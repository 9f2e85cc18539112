"""E runs that step together: data, models, optimizer. E = 1 is the ordinary case, not another path."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from grokfast import backend
from grokfast.models.base import Choice, Spec, Step, choose
from grokfast.models.runs import Runs, SplitRows
from grokfast.parts import name_of
from grokfast.probes import Positions, Probe
from grokfast.schedules.batches import Shown, augmented, follows, is_augmented, shown
from grokfast.schedules.program import Program, changed
from grokfast.store.records import Record
from grokfast.tasks import Data
from grokfast.training.batches import Orders
from grokfast.training.experiment import Experiment, check_together
from grokfast.training.probing import Probes
from grokfast.transforms import hypers
from grokfast.transforms.flat import FlatOptimizer, why_no_graph

NOTHING: Mapping[str, int] = MappingProxyType({})


def resolve_device(name: str) -> torch.device:
    """The torch device for an experiment's `device`; ValueError where it is unknown or absent."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros((), device=device).item()
    except Exception as error:  # each kind of device that is not there raises another
        why = str(error).partition("\n")[0].partition(". ")[0]
        raise ValueError(f"device must be 'auto', 'cpu' or an available accelerator, got {name!r}: {why}") from error
    return device


def spec_of(experiment: Experiment, device: torch.device, data: Data) -> Spec:
    """What decides which Step computes the experiment."""
    return Spec(
        model=experiment.model, loss=experiment.loss, data=data, device=device,
        dtype=getattr(torch, experiment.precision), products=experiment.products,
        batch_size=experiment.schedule.batch_size,
        is_reference=experiment.engine == "reference" or backend.current() == "reference",
        changes_rows=is_augmented(experiment.schedule.changes), scheduled=frozenset(_scheduled(experiment).values()),
    )  # fmt: skip


def _scheduled(experiment: Experiment) -> dict[str, str]:
    """What schedules change of model and loss: the field by the name that they call it."""
    own = hypers.places(experiment.filter)
    names = {f"{part}.{field}": field for part in ("model", "loss") for field in getattr(experiment, part).scheduled}
    names |= {field: field for field in names.values() if field not in own}
    return {name: names[name] for name in changed(experiment.schedule.changes) if name in names}


def choice_of(experiment: Experiment, device: torch.device, data: Data) -> Choice:
    """The Step that computes the experiment, and why. Raises ValueError where none can."""
    spec = spec_of(experiment, device, data)
    with backend.using("reference") if spec.is_reference else nullcontext():
        why_no_replay = why_no_graph(experiment.optimizer, experiment.filter, device, spec.dtype)
        return choose(spec, why_no_replay or _why_no_replay(experiment, data))


def _why_no_replay(experiment: Experiment, data: Data) -> str:
    """What of an evaluation needs the host, which a graph cannot ask, or what follows it there."""
    for probe in _probes(experiment, data):
        if probe.needs_host:
            return f"{name_of(probe)} needs the host"
    for change in follows(experiment.schedule.changes):
        return f"{name_of(change)} follows the evaluations"
    return ""


class Ensemble:
    """E runs' models in flat memory, the Step that computes them, their optimizer; `steps` have been taken so far.

    runs: parameters and data. compute: the Step. orders: of minibatches; None: every run takes all its rows at every
    step. coverage: of the first run's data, see Data.
    """

    orders: Orders | None

    def __init__(self, experiments: Sequence[Experiment]) -> None:
        check_together(experiments)
        self.experiments = list(experiments)
        common = experiments[0]
        self.schedule, self.device = common.schedule, resolve_device(common.device)
        data = [e.task.build(seed=e.seed) for e in experiments]
        for i, of_run in enumerate(data):
            if (own := _form(of_run)) != (first := _form(data[0])):
                raise ValueError(f"experiments[{i}].task gives data of {own}, experiments[0].task of {first}")
        most, self.coverage = max(data, key=lambda d: len(d.train)), data[0].coverage
        plainest = next((e for e in experiments if e.loss.op is None), common)  # a way that is all runs'
        self.choice = choice_of(plainest, self.device, most)
        for experiment, of_run in zip(experiments, data):
            for change in experiment.schedule.changes:
                change.check(of_run)
                change.check_schedule(self.schedule.steps, self.schedule.eval_every)
        self._changes = [e.schedule.changes for e in experiments]  # as they are now, where they follow the evaluations
        self._data = data if follows(common.schedule.changes) else []
        self._shown = [shown(e.schedule.changes, d) for e, d in zip(experiments, data)]
        self.orders = _orders(experiments, [len(d.train) for d in data], self._shown)
        self.runs = Runs(
            spec_of(plainest, self.device, most), [e.model for e in experiments], data, [e.seed for e in experiments],
            products=self.choice.products, largest=None if self.orders is None else self.orders.size,
            has_gaps=any(self._shown),
        )  # fmt: skip
        if is_augmented(self.schedule.changes):
            self.runs.augment = self._augmented
        self._batch_seeds = _batch_seeds(experiments).to(self.device)
        self.compute: Step = self.choice.step(self.runs)
        self._ahead: tuple[Tensor, Tensor, Tensor] | None = None  # of the next step: losses, accuracies, gradient
        self.optimizer = FlatOptimizer(
            self.flat, [e.optimizer for e in experiments], [e.filter for e in experiments], self.runs.layout
        )
        self.probes = Probes(_probes(common, most), most, self.runs.layout.names)
        if len({*self.columns}) < len(self.columns):
            raise ValueError(f"probes must have columns of their own, got {', '.join(self.columns)}")
        for name in ("memorize", "generalize"):
            if (split := getattr(common.criteria, name)) not in self.rows:
                there = ", ".join(map(repr, self.rows))
                raise ValueError(f"criteria.{name} must be a split of the task, one of {there}, got {split!r}")
        self.runs.clock = self._steps
        self._follow()
        self.diverged_at = torch.full((len(experiments),), -1, device=self.device)

    def _follow(self) -> None:
        """Have the optimizer follow what the schedules change of its hyper-parameters."""
        changes, first = [e.schedule.changes for e in self.experiments], self.experiments[0]
        current = [hypers.current(e.optimizer, e.filter) for e in self.experiments]
        same = hypers.same(first.filter)
        for name, field in _scheduled(first).items():
            same[name] = own = f"{'model' if field in first.model.scheduled else 'loss'}.{field}"
            for values, experiment in zip(current, self.experiments):
                values |= dict.fromkeys((name, own), experiment.flat()[own])
        program = Program(changes, current, self.schedule.steps, same)
        self._share_scheduled()
        if not program.names:
            return
        others = [name for name in program.names if name in {same[own] for own in _scheduled(first)}]
        for of_models in (program.low, program.high):
            for experiment, values in zip(self.experiments, of_models.tolist()):
                for name, value in zip(program.names, values):
                    if name in others:
                        _check(experiment, name, value)
        zeros = {name: torch.zeros(len(self.flat), dtype=torch.float64, device=self.device) for name in others}
        self.optimizer.follow(program, zeros)
        self._share_scheduled()

    def _share_scheduled(self) -> None:
        """Let model and loss find the values that change with the step, and those in which a run's loss is its own."""
        self.runs.scheduled = {name.partition(".")[2]: values for name, values in self.optimizer.others.items()}
        of_all = self.runs.spec.loss
        for field in of_all.varies - self.runs.scheduled.keys():
            values = [getattr(e.loss, field) for e in self.experiments]
            if {*values} != {getattr(of_all, field)}:
                self.runs.scheduled[field] = torch.tensor(values, dtype=torch.float64).to(self.device)

    @property
    def takes_ahead(self) -> bool:
        """Whether an evaluation of the whole training set is the next step's gradient, too."""
        is_another = self.compute.is_random or self.optimizer.others or self.experiments[0].optimizer.is_averaged
        return self.orders is None and not is_another

    def change(self) -> None:
        """Let model and loss have the values of the step that comes, where they change with it."""
        if self.optimizer.others:
            self.optimizer.change()

    def _steps(self) -> Tensor:
        """int64 [E], the steps taken, on the device."""
        clock = self.optimizer.clock
        return clock.steps if clock.at == self.steps else torch.full_like(clock.steps, self.steps)

    def _augmented(self, inputs: Tensor, targets: Tensor, models: slice) -> tuple[Tensor, Tensor]:
        """A batch [E, B, ...] of some models as this step shows it."""
        return augmented(self.schedule.changes, inputs, targets, self._steps()[models], self._batch_seeds[models])

    @property
    def steps(self) -> int:
        return self.optimizer.steps

    @property
    def is_due(self) -> bool:
        """Whether now is a time for an evaluation."""
        return self.steps % self.schedule.eval_every == 0 or self.steps >= self.schedule.steps

    @property
    def flat(self) -> Tensor:
        """The parameters, [E, P]."""
        return self.runs.flat

    @property
    def model(self) -> Any:
        """The models as one module."""
        return self.runs.module

    @property
    def rows(self) -> dict[str, SplitRows]:
        """The data, by split."""
        return self.runs.rows

    def step(self) -> None:
        """One optimizer step of every run; notes the step at which a loss or gradient first is not finite."""
        ahead, self._ahead = self._ahead, None
        chosen = self._chosen()
        loss, _, grad = self.gradient(chosen) if ahead is None else ahead
        self.take_anew(grad, chosen)
        with torch.no_grad():
            self.optimizer.step(self.flat, grad, loss, self.diverged_at)

    def gradient(self, chosen: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, accuracies [E] and gradients [E, P] on the rows `chosen` [E, B]; None: all.

        Where runs differ in size, -1 is no row.
        """
        splits = [] if self.compute.splits == 1 else [self.compute.splits]
        grad = self.flat.new_empty(*splits, *self.flat.shape)
        loss, accuracy = self.flat.new_empty(2, len(self.flat))
        self.runs.steps = self.steps
        self.change()
        self.compute.gradient(self.flat, grad, loss, chosen, accuracy)
        return loss, accuracy, grad

    def take_anew(self, grad: Tensor, chosen: Tensor | None) -> None:
        """Overwrite the gradients, of these rows, by those at other weights where a transform has them there."""
        kept = self.optimizer.move(self.flat, grad)
        if kept is not None:
            self.compute.gradient(self.flat, grad, self.flat.new_empty(len(self.flat)), chosen)
            with torch.no_grad():
                self.flat.copy_(kept)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """For an evaluation: the models have the weights that are evaluated, where the optimizer trains others."""
        own = self.optimizer.averaged(self.flat)
        kept = None if own is None else self.flat.clone()
        try:
            if own is not None:
                self.flat.copy_(own)
            yield
        finally:
            if kept is not None:
                self.flat.copy_(kept)

    def measure(self, split: str) -> tuple[Tensor, Tensor]:
        """Losses and accuracies [E] on a split."""
        loss, accuracy = self.flat.new_empty(2, len(self.flat))
        self.compute.measure(split, self.flat, loss, accuracy)
        return loss, accuracy

    def _chosen(self) -> Tensor | None:
        """The training rows of this step's batch, [E, B]; None: all of them."""
        return None if self.orders is None else self.orders.batch(self.steps).to(self.device)

    @torch.no_grad()
    def evaluate(self, *, goes_on: bool = False) -> list[Record]:
        """Every run's losses, accuracies and weight norm now.

        `goes_on` says that a step follows: of the whole training set, that step's own loss, accuracy and gradient are
        computed instead, and kept for it.
        """
        self.change()
        with self.averaged():
            if goes_on and self.takes_ahead:
                self._ahead = self.gradient(None)
                train = self._ahead[:2]
            else:
                train = self.measure("train")
            measured = [train, *map(self.measure, self.splits[1:])]
            self.optimizer.observe(*(measured[at][0] for at in self.judged))
            table = self.table([loss for loss, _ in measured], [accuracy for _, accuracy in measured]).tolist()
        return [Record(self.steps, dict(zip(self.columns, row))) for row in table]

    def table(self, losses: Sequence[Tensor], accuracies: Sequence[Tensor]) -> Tensor:
        """The `columns` now, fp64 [E, k], of losses and accuracies [E] of each split, "train" first."""
        columns = [column.double() for column in (*losses, *accuracies, self.flat.norm(dim=1))]
        return torch.cat([torch.stack(columns, 1), *self.probes.measure(self.runs)], 1)

    @property
    def splits(self) -> list[str]:
        """The names of the splits as they are measured: "train" first."""
        return ["train", *(split for split in self.rows if split != "train")]

    @property
    def judged(self) -> tuple[int, int]:
        """Which of `splits` tell that a run has memorised, and that it generalises."""
        criteria = self.experiments[0].criteria
        return self.splits.index(criteria.memorize), self.splits.index(criteria.generalize)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of what an evaluation measures."""
        losses, accuracies = ([f"{split}_{what}" for split in self.splits] for what in ("loss", "accuracy"))
        return (*losses, *accuracies, "weight_norm", *self.probes.names)

    def told(self, model: int, record: Record) -> None:
        """A run has this evaluation: let its changes that follow the evaluations go on from it."""
        if not self._data:
            return
        own = tuple(one.following(record) for one in self._changes[model])
        if own != self._changes[model]:
            self._changes[model], self._shown[model] = own, shown(own, self._data[model])
            self.orders = _orders(self.experiments, self.rows["train"].counts, self._shown)

    def keep(self, models: Sequence[int]) -> None:
        """Go on with these runs only; what they compute does not change. Where memory is short, nothing changes."""
        index = torch.tensor(models, device=self.device)
        diverged_at = self.diverged_at[index]
        take = self.runs.keep(models)
        self.optimizer.keep(index)
        take()
        self.probes.forget()
        self.experiments, self.diverged_at = [self.experiments[i] for i in models], diverged_at
        self._share_scheduled()
        self._shown, self._changes = [self._shown[i] for i in models], [self._changes[i] for i in models]
        self._data = [self._data[i] for i in models] if self._data else []
        self._batch_seeds = self._batch_seeds[index]
        self.orders, self._ahead = _orders(self.experiments, self.rows["train"].counts, self._shown), None
        self.runs.largest = None if self.orders is None else self.orders.size
        self.compute = self.compute.keep(models)

    def weights(self, i: int, flat: Tensor | None = None) -> dict[str, Tensor]:
        """Run i's parameters as they are evaluated, by name, without the ensemble axis; those in another `flat` [E, P],
        if given."""
        if flat is None:
            own = self.optimizer.averaged(self.flat)
            flat = self.flat if own is None else own
        row = flat[i : i + 1].detach().cpu()
        return {name: of_one[0].clone() for name, of_one in self.runs.layout.views(row).items()}

    def checkpoint(self, i: int) -> dict[str, Tensor]:
        """All that run i needs to go on to the same bits, given its experiment and the number of steps."""
        return {"parameters": self.flat[i], **{name: tensor[i] for name, tensor in self.optimizer.state.items()}}

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ValueError unless the tensors are such as `checkpoint` gives of any run."""
        own = self.checkpoint(0)
        shapes, accepted = ({name: (tuple(t.shape), t.dtype) for name, t in of.items()} for of in (tensors, own))
        if shapes != accepted:
            raise ValueError(f"the checkpoint holds {shapes}, accepted is {accepted}")

    @torch.no_grad()
    def restore(self, i: int, tensors: Mapping[str, Tensor], steps: int, begun: Mapping[str, int] = NOTHING) -> None:
        """Take up `checkpoint`'s tensors; ValueError, nothing changed, where they do not fit this experiment.

        begun: the steps, common to all runs, at which parts of a fork's began (`FlatOptimizer.begin`).
        """
        self.check(tensors)
        self.optimizer.begin(begun)
        for name, tensor in self.checkpoint(i).items():
            tensor.copy_(tensors[name])
        self.optimizer.steps, self._ahead = steps, None


def _check(experiment: Experiment, name: str, value: float) -> None:
    """Raise TypeError or ValueError where a field of model or loss takes no such value."""
    try:
        experiment.override({name: value})
    except (TypeError, ValueError) as error:
        raise type(error)(f"schedule.changes make {name!r} {value:g}: {error}") from error


def _probes(experiment: Experiment, data: Data) -> tuple[Probe, ...]:
    """What is measured beside losses, accuracies and the norm: with several answers a row each position's accuracy."""
    own = experiment.probes
    is_due = data.n_positions is not None and not any(isinstance(one, Positions) for one in own)
    return (Positions(), *own) if is_due else own


def _form(data: Data) -> str:
    """What the data of runs that train together have in common."""
    x, y = data.train.inputs, data.train.targets
    rows = f"inputs {[*x.shape[1:]]} {x.dtype} and targets {[*y.shape[1:]]} {y.dtype} a row"
    return f"splits {', '.join(data.splits)}, {rows}, {data.n_tokens} tokens and {data.n_answers} answers"


def _orders(experiments: Sequence[Experiment], n_rows: Sequence[int], shown: Sequence[Shown | None]) -> Orders | None:
    """Of the minibatches of runs with so many training rows; None: every step takes them all, as they are."""
    schedule, most = experiments[0].schedule, max(n_rows)
    size = min(schedule.batch_size or most, most)
    if size == most and not any(shown) and not is_augmented(schedule.changes):
        return None
    return Orders(experiments, n_rows, size, shown)


def _batch_seeds(experiments: Sequence[Experiment]) -> Tensor:
    """int64 [E]."""
    return torch.tensor([e.seed if e.schedule.batch_seed is None else e.schedule.batch_seed for e in experiments])
