"""E runs that step together: data, models, optimizer. E = 1 is the ordinary case, not another path."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfast import backend, ops
from grokfast.models import GrokTransformer, PairMLP, PairMLPConfig, Plan, TransformerConfig
from grokfast.models.transformer.planned import logits_of
from grokfast.ops.pair_step import Layout
from grokfast.ops.pair_step import cpu as pair_rows
from grokfast.ops.pair_step.reference import Parameters
from grokfast.schedules.batches import Shown, augmented, is_augmented, shown
from grokfast.schedules.program import Program
from grokfast.seeds import generator
from grokfast.store.records import STANDARD, Record
from grokfast.training.batches import Orders
from grokfast.training.choice import choose
from grokfast.training.experiment import Experiment, check_together
from grokfast.transforms import hypers
from grokfast.transforms.base import Layout as RowLayout
from grokfast.transforms.flat import FlatOptimizer

ALIGNMENT = 16  # elements


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


class Ensemble:
    """Parameters are one flat [E, P] tensor, of which the model's own are views; `steps` have been taken so far.

    The data sets are train_inputs [E, N, T], train_targets [E, N], test_inputs and test_targets. Run e has the first
    n_rows["train"][e] and n_rows["test"][e] rows; the others, where another run has more, repeat its first.

    is_ragged: whether training sets differ in size, or are shown in part; rows of a batch may then be -1, no row.
    orders: of minibatches; None: every run takes all its rows at every step.
    layout, sizes: where the parameters of PairMLPs of one hidden layer lie.
    """

    n_rows: dict[str, list[int]]
    is_ragged: bool
    orders: Orders | None
    _exists: dict[str, Tensor | None]
    _seeds: Tensor  # int64 [E], of batches

    def __init__(self, experiments: Sequence[Experiment]) -> None:
        check_together(experiments)
        self.experiments = list(experiments)
        common = experiments[0]
        self.loss, self.schedule = common.loss.op or "cross_entropy", common.schedule
        self.device = resolve_device(common.device)
        dtype = getattr(torch, common.precision)
        data = [e.task.build(seed=e.seed) for e in experiments]
        self.train_inputs, self.train_targets, self.test_inputs, self.test_targets = (
            _stack([getattr(d.splits[split], name) for d in data]).to(self.device)
            for split in ("train", "test")
            for name in ("inputs", "targets")
        )
        n_rows = {"train": [len(d.train.targets) for d in data], "test": [len(d.test.targets) for d in data]}
        changes = [e.schedule.changes for e in experiments]
        for of_experiment, of_run in zip(changes, data):
            for change in of_experiment:
                change.check(of_run)
        self._shown = [shown(*both) for both in zip(changes, data)]
        self._augments = changes[0] if is_augmented(changes[0]) else ()
        vars(self).update(_about(n_rows, experiments, self.device, self._shown, bool(self._augments)))
        sizes = {"n_tokens": data[0].n_tokens, "n_answers": data[0].n_answers}
        self.n_answers = data[0].n_answers
        self.choice = choose(common, self.device, data[0])
        seeds = [e.seed for e in experiments]

        def build(config: Any, seeds: Sequence[int]) -> PairMLP | GrokTransformer:
            if isinstance(config, PairMLPConfig):
                return PairMLP(config, **sizes, seeds=seeds, dtype=dtype)
            return GrokTransformer(config, **sizes, seq_len=data[0].seq_len, seeds=seeds, dtype=dtype)

        self.model = build(common.model, seeds)
        for i, experiment in enumerate(experiments):
            if experiment.model != common.model:  # in its initial scale
                for p, own in zip(self.model.parameters(), build(experiment.model, seeds[i : i + 1]).parameters()):
                    p.data[i] = own.data[0]
        self._single = build(common.model, seeds[:1]) if len(seeds) > 1 else self.model  # the form of one model
        self.model.to(self.device)
        self._single.to(self.device)
        self.layout: Layout | None = None
        if isinstance(common.model, PairMLPConfig) and common.model.depth == 1:
            self.layout = Layout.of({name: p.shape[1:] for name, p in self.model.named_parameters()})
            self.sizes: dict[str, Any] = {**sizes, "width": common.model.width}
        self.dropout = getattr(common.model, "dropout", 0.0)
        self.one_by_one = self.device.type == "cpu"  # models, each of which keeps its processor busy
        self.plans: dict[str, list[Plan]] = {"train": [], "test": []}
        if isinstance(common.model, TransformerConfig) and self.device.type == "cpu":
            self.plans["train"] = [Plan(common.model, d.train.inputs) for d in data]
            self.plans["test"] = [Plan(common.model, d.test.inputs) for d in data]
        self._ahead: tuple[Tensor, Tensor, Tensor] | None = None  # of the next step: what `gradient` gives
        self._bind(self._flatten([p.detach() for p in self.model.parameters()]))
        self.optimizer = FlatOptimizer(
            self.flat, [e.optimizer for e in experiments], [e.filter for e in experiments],
            RowLayout.of({name: p.shape[1:] for name, p in self.model.named_parameters()}),
        )  # fmt: skip
        self._follow()
        self.diverged_at = torch.full((len(experiments),), -1, device=self.device)

    def _follow(self) -> None:
        """Have the optimizer follow what the schedules change of its hyper-parameters."""
        optimizer, changes = self.optimizer, [e.schedule.changes for e in self.experiments]
        current = [hypers.current(e.optimizer, e.filter) for e in self.experiments]
        program = Program(changes, current, self.schedule.steps, hypers.same(self.experiments[0].filter))
        if program.names:
            optimizer.follow(program)

    @property
    def steps(self) -> int:
        return self.optimizer.steps

    def _flatten(self, tensors: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
        """Tensors [E, ...] as one [E, P], P rounded up with zeros to 64 bytes: a model's rows are aligned as alone."""
        width = sum(t[0].numel() for t in tensors)
        padding = tensors[0].new_zeros(len(tensors[0]), -width % ALIGNMENT)
        return torch.cat([*(t.flatten(1) for t in tensors), padding], 1, out=out)

    def _bind(self, flat: Tensor) -> None:
        """Make the model's parameters views of `flat` [E, P]."""
        self.flat, self._ahead, offset = flat, None, 0
        for p in self.model.parameters():
            size = p[0].numel()
            p.data = flat[:, offset : offset + size].view(len(flat), *p.shape[1:])
            offset += size
        self.n_parameters = offset
        names = [name for name, _ in self.model.named_parameters()]
        of_models = zip(*(p.detach().unbind() for p in self.model.parameters()))
        # each model's own parameters, for the gradient of one model at a time
        self._own = [{n: p.requires_grad_() for n, p in zip(names, of_model)} for of_model in of_models]

    def step(self) -> None:
        """One optimizer step of every run; notes the step at which a loss or gradient first is not finite."""
        ahead, self._ahead = self._ahead, None
        loss, _, grad = self.gradient(self._chosen()) if ahead is None else ahead
        with torch.no_grad():
            self.optimizer.step(self.flat, grad, loss, self.diverged_at)

    def gradient(self, chosen: Tensor | None, out: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Losses, accuracies [E] and gradients [E, P] (in `out`, if given) on the rows `chosen` [E, B]; None: all.

        Where runs differ in size, -1 is no row.
        """
        self.model.train()
        grad = torch.empty_like(self.flat) if out is None else out
        return *self._losses("train", chosen, grad), grad

    def measure(self, split: str) -> tuple[Tensor, Tensor]:
        """Losses and accuracies [E] on the training ("train") or the test set ("test")."""
        self.model.eval()
        return self._losses(split)

    def _losses(self, split: str, chosen: Tensor | None = None, grad: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Losses and accuracies [E]; `grad` [E, P] receives the gradients. On a CPU one model after the other."""
        with torch.set_grad_enabled(grad is not None):
            has_own_masks = self.dropout and self.is_ragged  # of dropout, as large as a run's own batch
            if not self.one_by_one and not has_own_masks:
                return self._at_once(split, chosen, grad)
            if grad is not None:
                grad[:, self.n_parameters :].zero_()
            found = [self._of_model(e, split, chosen, grad) for e in range(len(self.flat))]
        loss, accuracy = (torch.cat(column) for column in zip(*found))
        return loss, accuracy

    def _at_once(self, split: str, chosen: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        x, y, exists = self._rows(split, chosen)
        if grad is not None:
            x, y = self._augmented(x, y, slice(None))
        dropout = [generator(e.seed, "dropout", self.steps) for e in self.experiments] if self.dropout else None
        loss, accuracy = ops.classify(self.model(x, dropout), y, loss=self.loss, exists=exists)
        if grad is not None:
            self._flatten(torch.autograd.grad(loss.sum(), list(self.model.parameters())), grad)
        return loss.detach(), accuracy

    def _of_model(self, e: int, split: str, chosen: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        """Loss [1] and accuracy [1] of model e, which computes bit for bit what it computes alone."""
        own, n = None if chosen is None else chosen[e], self.n_rows[split][e]
        inputs, targets = getattr(self, f"{split}_inputs")[e, :n], getattr(self, f"{split}_targets")[e, :n]
        if own is not None:
            own = own[own >= 0] if self.is_ragged else own
            inputs, targets = inputs[own], targets[own]
        if self._augments and grad is not None:
            inputs, targets = (t[0] for t in self._augmented(inputs[None], targets[None], slice(e, e + 1)))
        if self._is_by_pieces():
            return self._by_pieces(e, inputs, targets, grad)
        if self._is_planned(e):
            assert isinstance(self.model, GrokTransformer)
            weights = self._own[e]
            logits = logits_of(self.model, weights, self.plans[split][e].rows(own))[None]
            parameters = list(weights.values())
        else:
            model, dropout = self._alone(e), None
            if self.dropout:
                dropout = [generator(self.experiments[e].seed, "dropout", self.steps)]
            logits = model(inputs[None], dropout)
            parameters = list(model.parameters())
        loss, accuracy = ops.classify(logits, targets[None], loss=self.loss)
        if grad is not None:
            grads = torch.autograd.grad(loss, parameters)
            torch.cat([g.flatten() for g in grads], out=grad[e, : self.n_parameters])
        return loss.detach(), accuracy

    def _augmented(self, inputs: Tensor, targets: Tensor, models: slice) -> tuple[Tensor, Tensor]:
        """A batch [E, B, ...] of some models as this step shows it."""
        if not self._augments:
            return inputs, targets
        clock = self.optimizer.clock
        steps = clock.steps if clock.at == self.steps else torch.full_like(clock.steps, self.steps)
        return augmented(self._augments, inputs, targets, steps[models], self._seeds[models])

    def _alone(self, e: int) -> PairMLP | GrokTransformer:
        """Model e as an ensemble of its own."""
        if len(self.flat) == 1:
            return self.model
        for p, of_all in zip(self._single.parameters(), self.model.parameters()):
            p.data = of_all.data[e : e + 1]
        self._single.train(self.model.training)
        return self._single

    def _is_planned(self, e: int) -> bool:
        """Whether to compute each distinct prefix once: a transformer on a CPU, unless plain PyTorch is asked for."""
        plans = self.plans["train"]
        changes_rows = bool(self.dropout or self._augments)
        if not plans or (changes_rows and self.model.training) or backend.current() == "reference":
            return False
        fused = backend.extension() is not None and self.flat.dtype is torch.float32
        return fused or plans[e].shares(min(self.schedule.batch_size or len(plans[e]), len(plans[e])))

    def _is_by_pieces(self) -> bool:
        """Whether a PairMLP's rows are computed a few at a time, on a CPU."""
        config = self.model.config
        return self.layout is not None and pair_rows.fits(config.activation, self.flat, self.n_answers)

    def _by_pieces(self, e: int, pairs: Tensor, targets: Tensor, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        a, b = pairs.T.contiguous()
        results = pair_rows.gradient(
            self._pair_weights(self.flat[e]), None if grad is None else self._pair_weights(grad[e]), a, b, targets,
            activation=self.model.config.activation, loss=self.loss,
        )  # fmt: skip
        loss, accuracy = torch.tensor(results, dtype=self.flat.dtype).split(1)
        return loss, accuracy

    def _pair_weights(self, row: Tensor) -> Parameters:
        """A PairMLP's parameters, or their gradients, in its row [P]."""
        assert self.layout is not None
        return self.layout.parameters(row, **self.sizes)

    def _chosen(self) -> Tensor | None:
        """The training rows of this step's batch, [E, B]; None: all of them."""
        if self.orders is None:
            return None
        (batch,) = self.orders.batches(self.steps, self.steps + 1)
        return batch[:, : self.orders.length(self.steps)].to(self.device)

    def _rows(self, split: str, chosen: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Inputs and targets of the rows `chosen` [E, B] of a split, None: of all, and which there are, None: all."""
        inputs, targets = getattr(self, f"{split}_inputs"), getattr(self, f"{split}_targets")
        if chosen is None:
            return inputs, targets, self._exists[split]
        exists = None
        if self.is_ragged:
            exists, chosen = chosen >= 0, chosen.clamp(min=0)
        models = torch.arange(len(chosen), device=self.device)[:, None]
        return inputs[models, chosen], targets[models, chosen], exists

    @torch.no_grad()
    def evaluate(self, *, goes_on: bool = False) -> list[Record]:
        """Every run's losses, accuracies and weight norm now.

        `goes_on` says that a step follows: of the whole training set, that step's own loss, accuracy and gradient are
        computed instead, and kept for it.
        """
        if goes_on and self.orders is None and not self.dropout:
            self._ahead = self.gradient(None)
            train = self._ahead[:2]
        else:
            train = self.measure("train")
        columns = [*train, *self.measure("test"), self.flat.norm(dim=1)]
        rows = torch.stack([column.double() for column in columns], 1).tolist()
        return [
            Record(self.steps, dict(zip(STANDARD, (train_loss, test_loss, train_accuracy, test_accuracy, norm))))
            for train_loss, train_accuracy, test_loss, test_accuracy, norm in rows
        ]

    def keep(self, models: Sequence[int]) -> None:
        """Go on with these runs only; what they compute does not change. Where memory is short, nothing changes."""
        index = torch.tensor(models, device=self.device)
        flat, experiments = self.flat[index], [self.experiments[i] for i in models]
        n_rows = {split: [own[i] for i in models] for split, own in self.n_rows.items()}
        kept = {"experiments": experiments, "diverged_at": self.diverged_at[index]}
        self._shown = [self._shown[i] for i in models]
        kept |= _about(n_rows, experiments, self.device, self._shown, bool(self._augments))
        for split, own in n_rows.items():
            for name in (f"{split}_inputs", f"{split}_targets"):
                kept[name] = getattr(self, name)[index, : max(own)]
        self.optimizer.keep(index)
        vars(self).update(kept)
        self.model.seeds = tuple(self.model.seeds[i] for i in models)
        self.plans = {split: [plans[i] for i in models] if plans else [] for split, plans in self.plans.items()}
        self._bind(flat)

    def weights(self, i: int, flat: Tensor | None = None) -> dict[str, Tensor]:
        """Run i's parameters by name, without the ensemble axis; those in another `flat` [E, P], if given."""
        row = (self.flat if flat is None else flat)[i].detach().cpu().clone()
        parameters = {name: p[0] for name, p in self.model.named_parameters()}
        parts = row[: self.n_parameters].split([p.numel() for p in parameters.values()])
        return {name: part.view(p.shape).clone() for (name, p), part in zip(parameters.items(), parts)}

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
    def restore(self, i: int, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take up `checkpoint`'s tensors; ValueError, nothing changed, where they do not fit this experiment."""
        self.check(tensors)
        for name, tensor in self.checkpoint(i).items():
            tensor.copy_(tensors[name])
        self.optimizer.steps, self._ahead = steps, None


def _about(
    n_rows: dict[str, list[int]],
    experiments: Sequence[Experiment],
    device: torch.device,
    shown: Sequence[Shown | None],
    is_augmented: bool,
) -> dict[str, Any]:
    """What an Ensemble knows of data sets with so many rows each."""
    exists: dict[str, Tensor | None] = {}
    for split, own in n_rows.items():
        at = torch.arange(max(own), device=device)
        exists[split] = at < torch.tensor(own, device=device)[:, None] if len(set(own)) > 1 else None
    own, size = n_rows["train"], experiments[0].schedule.batch_size
    has_gaps, orders = any(shown), None
    if has_gaps or is_augmented or (size is not None and size < max(own)):
        orders = Orders(experiments, own, min(size or max(own), max(own)), shown)
    is_ragged = len(set(own)) > 1 or has_gaps
    seeds = torch.tensor([e.seed if e.schedule.batch_seed is None else e.schedule.batch_seed for e in experiments])
    about = {"n_rows": n_rows, "is_ragged": is_ragged, "orders": orders, "_exists": exists}
    return {**about, "_seeds": seeds.to(device)}


def _stack(parts: Sequence[Tensor]) -> Tensor:
    """[E, N, ...] of tensors [N_e, ...], N the largest N_e; the others go on with their first row."""
    n = max(map(len, parts))
    return torch.stack([torch.cat([part, part[:1].expand(n - len(part), *part.shape[1:])]) for part in parts])
