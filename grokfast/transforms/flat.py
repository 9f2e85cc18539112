"""Transforms and optimizer for E models at once, over flat [E, P] parameters, each with its own hyper-parameters."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping, Sequence
from itertools import product
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from grokfast import backend, checks
from grokfast.transforms import hypers, rules
from grokfast.transforms.base import Layout, Transform
from grokfast.transforms.chain import elements, named
from grokfast.transforms.clock import Clock, model_row, sum_partials
from grokfast.transforms.filters import Filter, filter_of
from grokfast.transforms.launch import Launch, Uploads, dtypes
from grokfast.transforms.operations import Operation, check_kinds
from grokfast.transforms.optimizers import Optimizer
from grokfast.transforms.row_wise import RowWise
from grokfast.transforms.rows import ADAM, COLUMNS, LION, SGD
from grokfast.transforms.spans import Span
from grokfast.transforms.tables import STEPS, Program, Tables

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
RULES = {"adamw": ADAM, "adam": ADAM, "sgd": SGD, "lion": LION}


class FlatOptimizer:
    """An optimizer, and any transforms around it; algorithm and kinds of transforms are common to all.

    `state` maps a name to a tensor whose first axis is the model: exp_avg and exp_avg_sq or momentum_buffer [E, P],
    ema [E, P], or ring [E, window, P] and sum [E, P]. `steps` counts the steps of all models; `begun` has the step at
    which a part began whose state is not from step 0 (`begin`).
    A step is one pass over memory on CPU fp32 with the extension; otherwise the clock's tick and then one launch on a
    GPU, or plain PyTorch on any device and in any precision: these two read nothing from the host.
    EMA or MA, where it is the last before the update, is in that pass or launch, whenever it starts or stops; in a
    CPU's pass a projection and penalties before it and a clip after it, too (`RowWise`). Other transforms are torch
    operations before and after it, on the parameters that `layout` (None: one of P numbers) has in a row; their state
    is named "<place in the chain>.<name>". Optimizers without a `rule`, which neither pass nor launch has, are
    operations, too.
    `reached`, int64 [2, E], has after how many steps each model was found to have memorised, and generalised (-1: not
    yet): what waits for such a moment starts, stops or changes by it.

    Raises ValueError unless there is a configuration and a filter for each of the E models of flat [E, P]; TypeError or
    ValueError, by its name, where a transform does to a copy of a model what it must not.
    """

    def __init__(
        self,
        flat: Tensor,
        configs: Sequence[Optimizer],
        filters: Sequence[Transform | None],
        layout: Layout | None = None,
    ) -> None:
        for name, given in (("configs", configs), ("filters", filters)):
            if len(given) != len(flat):
                raise ValueError(f"{name} must be one per model, {len(flat)}, got {len(given)}")
        check_kinds(filters)
        self.layout = layout or Layout.of({"parameters": flat.shape[1:]})
        self.steps = 0
        self.begun: dict[str, int] = {}
        self.state: dict[str, Tensor] = {}
        self.reached = torch.full((2, len(flat)), -1, dtype=torch.int64, device=flat.device)
        self._set(configs, filters, flat)
        for operation in (*self._before, *self._after):
            operation.try_out(flat)
        for name, slot in state_slots(configs[0], filters[0], self.layout, flat.shape[1], flat.dtype).items():
            self.state[name] = _zeros(flat, slot)
        self.is_torn = False  # an update was begun, and not ended
        self.tables: Tables | None = None  # of what changes with the step
        self.others: dict[str, Tensor] = {}  # what changes with the step beside optimizer and transforms
        self.is_fed = False  # somebody else prepares the tables
        self._launches: dict[object, Launch] = {}
        self._uploads = Uploads()
        self._overrides = torch.zeros(len(flat), 4, dtype=torch.int64, device=flat.device)
        self._unwatched = flat.new_zeros(len(flat)), torch.zeros_like(self.clock.steps)
        self._ones: Tensor | None = None

    def _set(self, configs: Sequence[Optimizer], filters: Sequence[Transform | None], like: Tensor) -> None:
        """All that follows from the models' configurations and filters alone."""
        self.configs, self.filters = list(configs), list(filters)
        self.fused = [in_pass(config, filter) for config, filter in zip(configs, filters)]
        config = configs[0]
        self._decayed = [] if config.decayed == "all" or not config.rule else config.decayed_ranges(self.layout)
        self._before: list[Operation] = []
        self._after: list[Operation] = []
        self._anew: Operation | None = None  # the gradient is taken anew
        for i, one in enumerate(elements(filters[0])):
            if one.is_taken_anew:
                self._anew = Operation(i, filters, self.layout, like)
            elif one is not self.fused[0]:
                stage = self._before if one.when == "before" else self._after
                stage.append(Operation(i, filters, self.layout, like))
        self._row_wise = RowWise([] if self._decayed else self._before, self._after, self.fused[0], self.layout)
        own = [filter for filter in self.fused if filter is not None]
        self._span = Span.of(own, like.device) if own else None
        self._rates: list[float] = []
        self._hyper = array("d")
        self._is_warm = False  # rates and rows are those of every further step
        self._own = {
            name: torch.tensor([getattr(c, name) for c in configs], dtype=torch.float64).to(like.device)[:, None]
            for name in config.varies - COLUMNS.keys() - {"betas"}
        }
        self._decay = torch.tensor([c.weight_decay for c in configs], dtype=torch.float64, device=like.device)
        self.clock = Clock(self.configs, self.fused, like.device)
        self.begin(self.begun)

    def begin(self, begun: Mapping[str, int]) -> None:
        """Let parts begin at a later step than 0, with the state that is there: "optimizer", and transforms by their
        names in dotted paths. Bias corrections, first values and windows then count from there; warm-up, schedules and
        where runs diverge go on counting the steps of the run.

        Raises ValueError for a name that is none.
        """
        names = named(self.filters[0])
        for name in begun:
            checks.choice("begun", name, ["optimizer", *names])
        self.begun = {name: step for name, step in begun.items() if step}
        clock = self.clock
        clock.optimizer_from = self.begun.get("optimizer", 0)
        clock.filter_from = next((self.begun.get(name, 0) for name, one in names.items() if one is self.fused[0]), 0)
        clock.at = -1  # to be sought

    def keep(self, models: Tensor) -> None:
        """Go on with these models only."""
        state = {}
        for name, tensor in self.state.items():
            kept = tensor[models.to(tensor.device)]
            state[name] = kept.pin_memory() if tensor.is_pinned() else kept
        self.state = state
        own = models.tolist()
        self._set([self.configs[i] for i in own], [self.filters[i] for i in own], self._unwatched[0])
        self._launches.clear()
        self._overrides = self._overrides[: len(models)].clone()
        self._unwatched = self._unwatched[0][: len(models)], torch.zeros_like(self.clock.steps)
        self.reached = self.reached[:, models]
        if self.tables is not None:
            self.follow(self.tables.program.keep(own), {name: t[models] for name, t in self.others.items()})

    def follow(self, program: Program, others: Mapping[str, Tensor] = NOTHING, most_steps: int = STEPS) -> None:
        """From now on hyper-parameters change with the step as the program says, by the names in hypers.places; and
        what is not the optimizer's, `others`: fp64 [E] each, where the values are to be written.

        Raises TypeError or ValueError where a field takes no such value.
        """
        for of_models in (program.low, program.high):
            for config, filter, values in zip(self.configs, self.filters, of_models.tolist()):
                for name, value in zip(program.names, values):
                    if name not in others:
                        hypers.check(config, filter, name, value)
        self.tables, self.others = Tables(program, self.reached, most_steps), dict(others)
        places = hypers.places(self.filters[0])
        self._changed = [others[name] if name in others else self._place(places[name]) for name in program.names]

    def _place(self, place: hypers.Place) -> Tensor:
        """Where a hyper-parameter's values [E] lie."""
        if place == (-1, "lr"):
            return self.clock.lr
        if place.element >= 0 and elements(self.filters[0])[place.element] is not self.fused[0]:
            (own,) = (one for one in self._operations if one.place == place.element)
            return own.hyper[place.field][:, 0]
        if place == (-1, "weight_decay") and self._decayed:
            return self._decay
        return self.clock.hyper[:, COLUMNS[place.field]]

    def change(self) -> None:
        """Write the hyper-parameters of the step that comes, for who needs `others` before it."""
        if self.clock.at != self.steps:
            self.clock.seek(self.steps)
        self._change(self.clock.steps)

    def _change(self, steps: Tensor) -> None:
        """Write the hyper-parameters of the step that comes; `steps`, int64 [E], were taken before it."""
        if self.tables is None:
            return
        if not self.is_fed:
            self.tables.prepare(self.steps, 1)
        for own, values in zip(self._changed, self.tables.select(steps).unbind(1)):
            own.copy_(values)

    @property
    def _operations(self) -> list[Operation]:
        return [*([] if self._anew is None else [self._anew]), *self._before, *self._after]

    @torch.no_grad()
    def move(self, flat: Tensor, grad: Tensor) -> Tensor | None:
        """Move flat [E, P] to where the gradient of this step is to be taken anew, given that at flat, as `step` takes
        it. Returns the weights to go back to then; None: flat is the place."""
        if self._anew is None:
            return None
        if self.clock.at != self.steps:
            self.clock.seek(self.steps)
        self._change(self.clock.steps)
        kept, size = flat.clone(), self.layout.size
        offset = self._anew.transform.offset(sum_partials(grad)[:, :size], self._anew.hyper)
        if self._anew.span is not None:
            begun = self.begun.get(self._anew.name, 0)
            on, _ = self._anew.span.now(self.clock.steps, self.reached, begun)
            offset = torch.where(on[:, None], offset, 0)
        flat[:, :size].add_(offset)
        return kept

    @torch.no_grad()
    def averaged(self, flat: Tensor) -> Tensor | None:
        """The weights [E, P] that are evaluated, where those are not flat, which train; else None."""
        config, clock = self.configs[0], self.clock
        if not config.is_averaged:
            return None
        steps = clock.steps if clock.at == self.steps else torch.full_like(clock.steps, self.steps)
        found, size = flat.clone(), self.layout.size
        step = steps[:, None] - clock.optimizer_from
        config.averaged(found[:, :size], self.state, self._hyper_of_own(), self.layout, step)
        return found

    @property
    def waits(self) -> bool:
        """Whether anything waits for a moment of the runs, which somebody must write into `reached`."""
        spans = [self._span, *(one.span for one in self._operations)]
        return bool(self.tables and self.tables.program.switched) or any(span and span.waits for span in spans)

    def _switch(self, steps: Tensor) -> None:
        """Have the filter in the pass be on or off at the step that comes, of each model, and know how long it was on:
        while it is off its count is 0 and its tensors are left alone."""
        if self._span is not None:
            on, taken = self._span.now(steps, self.reached, self.clock.filter_from)
            self.clock.column("enabled").copy_(on[:, None])
            self.clock.counts.copy_(taken)

    def why_no_graph(self) -> str:
        """What of a step needs the host, which a graph cannot ask; empty where nothing does."""
        return why_no_graph(self.configs[0], self.filters[0], self.clock.device, self._unwatched[0].dtype)

    def step(self, flat: Tensor, grad: Tensor, loss: Tensor | None = None, diverged_at: Tensor | None = None) -> None:
        """One step of every model: flat and grad [E, P], or grad [S, E, P], partial gradients, of which the first is
        overwritten by their sum; other transforms than EMA and MA change the gradient, too.

        diverged_at, int64 [E] with -1 for "not yet", is given the number of the step (from 0) of each model whose loss
        [E] or gradient is not finite.
        """
        is_fused = bool(self.configs[0].rule)
        is_launched = is_fused and flat.dtype in dtypes(flat.device)
        if (
            is_fused
            and not is_launched
            and backend.extension() is not None
            and flat.is_cpu
            and flat.dtype is torch.float32
        ):
            grad = sum_partials(grad)
            if loss is not None and diverged_at is not None:
                if self._ones is None:
                    self._ones = grad.new_ones(grad.shape[1])
                for e, total in enumerate(torch.addmv(loss, grad, self._ones).tolist()):  # a sum would wake threads
                    if not math.isfinite(total) and diverged_at[e] < 0:
                        diverged_at[e] = self.steps
            if self._before or self._after or self._decayed or self._changes_with_step:
                step = torch.full((len(flat), 1), self.steps)
                self._change(step[:, 0])
                self.is_torn = True
                own = self._row_wise
                self._operate(self._before[: len(self._before) - own.n_before], flat, grad, step)
                if self._decayed:
                    self._decay_some(flat, grad, torch.tensor(self._rates_of(self.steps), dtype=torch.float64))
                self._one_pass(flat, grad)
                self._operate(self._after[own.n_after :], flat, grad, step)
                self.is_torn = False
            else:
                self._one_pass(flat, grad)
            return
        if self.clock.at != self.steps:
            self.clock.seek(self.steps)
        if loss is None or diverged_at is None:
            loss, diverged_at = self._unwatched
        self._change(self.clock.steps)
        self._switch(self.clock.steps)
        grad = self.clock.tick(grad, loss, diverged_at)
        self.is_torn = True
        step = self.clock.steps[:, None] - 1 if self._before or self._after else self.clock.steps
        self._operate(self._before, flat, grad, step)
        if self._decayed:
            self._decay_some(flat, grad, self.clock.hyper[:, 0])
        if is_launched:
            self._launch(flat, grad)
        else:
            self._reference(flat, grad)
        self._operate(self._after, flat, grad, step)
        self.is_torn = False
        self.steps += 1

    def _operate(self, operations: Sequence[Operation], flat: Tensor, grad: Tensor, step: Tensor) -> None:
        for operation in operations:
            begun = self.begun.get(operation.name)
            if operation.span is None:
                operation.apply(grad, flat, self.state, step if begun is None else step - begun)
            else:
                on, taken = operation.span.now(step[:, 0], self.reached, begun or 0)
                operation.apply_where(on, grad, flat, self.state, taken[:, None])

    def observe(self, train_loss: Tensor, test_loss: Tensor) -> None:
        """Tell the transforms the losses [E] that an evaluation has found, without waiting for the device."""
        for operation in (*self._before, *self._after):
            operation.observe(self.state, train_loss[:, None], test_loss[:, None])

    def _decay_some(self, flat: Tensor, grad: Tensor, rates: Tensor) -> None:
        """The weight decay of a step with these rates, fp64 [E], where not all parameters have it: what the update does
        to all of them otherwise, just before it."""
        is_decoupled = self.configs[0].is_decoupled
        amount = (1 - rates * self._decay if is_decoupled else self._decay).to(flat.dtype)[:, None]
        for own in self._decayed:
            if is_decoupled:
                flat[:, own].mul_(amount)
            else:
                grad[:, own].addcmul_(flat[:, own], amount)

    @property
    def _changes_with_step(self) -> bool:
        """Whether the clock has other hyper-parameters from step to step than learning rates."""
        return self.tables is not None or self._span is not None

    def set_host(self, steps: int) -> None:
        """So many steps have been taken on the device, whatever was counted here while a graph was made of them."""
        self.steps = self.clock.at = steps
        self.is_torn = False

    def _set_rates(self) -> None:
        """The learning rates of this step, and the models' rows of csrc/update_rules.h's `Hyper`."""
        self._rates = self._rates_of(self.steps - 1)
        self._hyper = array("d")
        if self._changes_with_step:
            for row, rate in zip(self.clock.hyper.tolist(), self._rates):
                self._hyper.extend((rate, *row[1:]))
            return
        for config, own, rate in zip(self.configs, self.fused, self._rates):
            self._hyper.extend(model_row(config, own, rate))

    def _rates_of(self, step: int) -> list[float]:
        rates = [c.lr for c in self.configs] if self.tables is None else self.clock.lr.tolist()
        return [lr * (min(1.0, step / c.warmup) if c.warmup else 1.0) for lr, c in zip(rates, self.configs)]

    def _one_pass(self, flat: Tensor, grad: Tensor) -> None:
        self.steps += 1
        clock, models = self.clock, len(flat)
        adam_steps = counts = [0] * models  # counted by the steps of all
        pieces, row_wise = [(0, flat.shape[1])], None
        if self._row_wise:
            pieces, row_wise = self._row_wise.pieces, self._row_wise.numbers(models)
        if self.begun or self._span is not None or self._row_wise:
            clock.seek(self.steps - 1)
            self._switch(clock.steps)
            own = [counter.repeat_interleave(len(pieces)) for counter in (clock.adam_steps, clock.counts)]
            adam_steps, counts = ([t.data_ptr() for t in counter] for counter in own)
        elif self.steps == 1 and "ema" in self.state:
            self.state["ema"].copy_(grad)
        is_warm = not self._changes_with_step and self.steps > max(c.warmup for c in self.configs)
        if not (is_warm and self._is_warm):
            self._set_rates()
        self._is_warm = is_warm
        is_first = self.steps == clock.optimizer_from + 1 and "momentum_buffer" in self.state
        entries = self._entries(flat, grad, adam_steps, counts, is_first, pieces)
        module, threads, kind = backend.load_extension(), torch.get_num_threads(), self._kind()
        ring = int(kind == 2 and self.state["ring"].dtype is torch.bfloat16)
        rule = RULES[self.configs[0].rule]
        module.update(rule, kind, entries, self._hyper, self.steps, threads, ring_type=ring, row_wise=row_wise)

    def _launch(self, flat: Tensor, grad: Tensor) -> None:
        clock = self.clock
        key = tuple(t.data_ptr() for t in (flat, grad, *self.state.values())), backend.current()
        launch = self._launches.get(key)
        if launch is None:
            steps, counts = ([t.data_ptr() for t in counter] for counter in (clock.adam_steps, clock.counts))
            entries = self._entries(flat, grad, steps, counts, False, [(0, flat.shape[1])])
            filter, ring = self.fused[0], self.state.get("ring", flat).dtype
            window = filter.window if filter else 1
            launch = Launch(
                RULES[self.configs[0].rule], self._kind(), entries, window,
                torch.bfloat16 if ring is torch.bfloat16 else torch.float32, flat.dtype, flat.device, self._uploads,
            )  # fmt: skip
            if len(self._launches) >= 4:  # gradients alternate between a few places
                self._launches.pop(next(iter(self._launches)))
            self._launches[key] = launch
        launch(clock.hyper, self._overrides)

    def _kind(self) -> int:
        return 0 if self.fused[0] is None else self.fused[0].number

    def _entries(
        self,
        flat: Tensor,
        grad: Tensor,
        steps: Sequence[int],
        counts: Sequence[int],
        is_first: bool,
        pieces: Sequence[tuple[int, int]],
    ) -> array[int]:
        """A row of csrc/grokfast.h's UpdateEntry for every piece, its first place and length, of every model.

        steps, counts: addresses or 0.
        """
        state, entries = self.state, array("q")
        slots = [state.get("momentum_buffer", state.get("exp_avg")), state.get("exp_avg_sq")]
        slots += [state.get("ring", state.get("ema")), state.get("sum")]
        rows = [
            (0, 0, 0) if t is None else (t.data_ptr(), t.stride(0) * t.element_size(), t.element_size())
            for t in (flat, grad, *slots)
        ]
        for i, (e, (at, size)) in enumerate(product(range(len(flat)), pieces)):
            weights, grads, one, two, past, total = (start + e * stride + at * each for start, stride, each in rows)
            entries.extend((size, weights, grads, one, two, steps[i], past, total, counts[i], is_first, e))
        return entries

    def _reference(self, flat: Tensor, grad: Tensor) -> None:
        """The same in plain PyTorch."""
        config, column, state = self.configs[0], self.clock.column, self.state
        if not config.rule:
            size, step = self.layout.size, self.clock.steps[:, None] - 1 - self.clock.optimizer_from
            config.update(grad[:, :size], flat[:, :size], state, self._hyper_of_own(), self.layout, step)
            return
        grad = self._filtered(grad)
        common = {"lr": column("lr"), "weight_decay": column("weight_decay")}
        if config.rule == "sgd":
            buffer = state.get("momentum_buffer")
            rules.sgd(flat, grad, buffer, momentum=column("momentum"), nesterov=config.hyper["nesterov"], **common)
            return
        common |= {"beta1": column("beta1"), "beta2": column("beta2")}
        if config.rule == "lion":
            rules.lion(flat, grad, state["exp_avg"], **common)
            return
        rules.adam(
            flat, grad, state["exp_avg"], state["exp_avg_sq"],
            self.clock.steps[:, None] - self.clock.optimizer_from,  # the tick has counted it
            eps=column("eps"), decoupled=config.rule == "adamw", **common,
        )  # fmt: skip

    def _hyper_of_own(self) -> Mapping[str, Tensor]:
        """What an optimizer's own `update` is told."""
        names = {"lr", "beta1", "beta2", *(self.configs[0].varies & COLUMNS.keys())}
        return MappingProxyType({**{name: self.clock.column(name) for name in names}, **self._own})

    def _filtered(self, grad: Tensor) -> Tensor:
        filter, clock = self.fused[0], self.clock
        if filter is None:
            return grad
        numbers = {"alpha": clock.column("alpha"), "lamb": clock.column("lamb")}
        if self._span is not None:
            numbers["enabled"] = clock.column("enabled")
        return filter.filtered(grad, {**self.state, "count": clock.counts[:, None]}, numbers)


class Slot(NamedTuple):
    """A tensor that is kept of a model: its shape without E, and whether it lies in host memory, beside a GPU's."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    on_host: bool = False

    @property
    def bytes(self) -> int:
        """Of device memory."""
        return 0 if self.on_host else torch.Size(self.shape).numel() * self.dtype.itemsize


def state_slots(
    config: Optimizer, filter: Transform | None, layout: Layout, width: int, dtype: torch.dtype
) -> dict[str, Slot]:
    """What optimizer and transforms keep of a model whose row has `width` numbers of `dtype`, by name."""
    row = Slot((width,), dtype)
    slots = dict.fromkeys(config.moments, row)
    slots |= {name: Slot(tuple(shape), dtype) for name, shape in config.state(layout).items()}
    fused = in_pass(config, filter)
    for i, one in enumerate(elements(filter)):
        if fused is None or one is not fused:
            shapes = one.state(layout)
            slots |= {f"{i}.{name}": Slot(tuple(shape), dtype) for name, shape in shapes.items()}
        else:
            for kept in fused.kept:
                own = torch.bfloat16 if kept.in_bf16 else dtype
                slots[kept.name] = Slot((*kept.lead, width), own, kept.on_host)
    return slots


def state_names(config: Optimizer, filter: Transform | None, layout: Layout) -> dict[str, dict[str, str]]:
    """Of each part, "optimizer" and transforms by their names in dotted paths, the names of what it keeps, and for each
    the name that it has in a FlatOptimizer's state."""
    fused = in_pass(config, filter)
    found = {"optimizer": {name: name for name in (*config.moments, *config.state(layout))}}
    for i, (part, one) in enumerate(named(filter).items()):
        if fused is not None and one is fused:
            found[part] = {kept.name: kept.name for kept in fused.kept}
        else:
            found[part] = {name: f"{i}.{name}" for name in one.state(layout)}
    return found


def in_pass(config: Optimizer, filter: Transform | None) -> Filter | None:
    """The EMA or MA that is computed with the update, in one pass: the last transform before it, or None. Where some
    parameters have L2, which comes after a filter and is not the update's, there is none; nor where the update is not
    in the pass."""
    if not config.rule:
        return None
    if config.decayed != "all" and not config.is_decoupled:
        return None
    return filter_of(next((one for one in reversed(elements(filter)) if one.when == "before"), None))


def why_no_graph(config: Optimizer, filter: Transform | None, device: torch.device, dtype: torch.dtype) -> str:
    """What of a step with these transforms needs the host, which a graph cannot ask; empty where nothing does."""
    fused = in_pass(config, filter)
    for one in elements(filter):
        if one.needs_host:
            return f"{type(one).__name__} needs the host"
    is_on_host = fused is not None and fused.on_host and device.type == "cuda"
    if is_on_host and dtype not in dtypes(device):
        return "plain PyTorch takes the filter's window in host memory by way of the host"
    return ""


def _zeros(flat: Tensor, slot: Slot) -> Tensor:
    """Zeros [E, *slot.shape]."""
    pinned = slot.on_host and flat.is_cuda
    place = {"device": "cpu", "pin_memory": True} if pinned else {"device": flat.device}
    return torch.zeros((len(flat), *slot.shape), dtype=slot.dtype, **place)
