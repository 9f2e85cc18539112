"""How many runs fit into a device's memory at once, and the first of them as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch

from grokfast.models import GrokTransformer, PairMLP, PairMLPConfig, TransformerConfig
from grokfast.models.transformer.memory import memory
from grokfast.ops.pair_step import plan
from grokfast.schedules.batches import has_batches
from grokfast.tasks import Data
from grokfast.training.choice import choose
from grokfast.training.ensemble import ALIGNMENT, Ensemble, resolve_device
from grokfast.training.experiment import Experiment
from grokfast.training.replay import LONGEST
from grokfast.transforms.base import Layout
from grokfast.transforms.flat import state_slots

SHARE = 0.9  # of the free memory that is planned with: blocks of memory are rounded up, graphs have some of their own


class Need(NamedTuple):
    """Bytes of device memory for one run: what it holds throughout, and what a step or an evaluation takes beside."""

    held: int
    passing: int

    @property
    def total(self) -> int:
        return self.held + self.passing


def bytes_per_run(experiment: Experiment, among: Sequence[Experiment] = ()) -> Need:
    """What a run of an experiment needs, by counting: weights, gradient, optimizer, filter, data, activations.

    Together with `among`, it has data sets as large as the largest of theirs.
    """
    data = experiment.task.build(seed=experiment.seed)
    others = {e.task.n_rows(): e for e in among}  # what else differs changes no size
    sets = [data, *(e.task.build(seed=e.seed) for e in others.values())]
    rows, tests = max(len(d.train.inputs) for d in sets), max(len(d.test.inputs) for d in sets)
    length = data.seq_len
    dtype = getattr(torch, experiment.precision)
    size, layout = dtype.itemsize, layout_of(experiment, data)
    parameters = -(-layout.size // ALIGNMENT) * ALIGNMENT
    slots = state_slots(experiment.optimizer, experiment.filter, layout, parameters, dtype)
    held = parameters * size * 3 + sum(slot.bytes for slot in slots.values())  # weights, gradient, weights at the end
    held += 8 * (rows + tests) * (length + 1)
    batch = min(experiment.schedule.batch_size or rows, rows)
    if batch < rows or has_batches(experiment.schedule.changes):
        steps = min(LONGEST, experiment.schedule.eval_every)
        held += 8 * batch * (1 + steps)
    device = resolve_device(experiment.device)
    choice = choose(experiment, device, data)
    if choice.has_kernels and isinstance(experiment.model, PairMLPConfig):
        sizes = {"width": experiment.model.width, "n_tokens": data.n_tokens, "n_answers": data.n_answers}
        scratch = plan.memory(1, batch, **sizes, precision=choice.products)
        return Need(held + 24 * (rows + tests), scratch)
    if choice.has_kernels and isinstance(experiment.model, TransformerConfig):
        outputs = data.n_answers if experiment.model.outputs == "answers" else data.n_tokens
        taken = partial(
            memory, experiment.model, n_tokens=data.n_tokens, n_outputs=outputs, n_parameters=parameters,
            precision=choice.products,
        )  # fmt: skip
        train = taken(tokens=data.train.inputs, n_batch=batch if batch < rows else None)
        test = taken(tokens=data.test.inputs, n_batch=None, trains=False)
        return Need(held + train.held + test.held, max(train.gradient, train.measure, test.measure))
    forward, both = (activations(experiment, data, backward=backward) for backward in (False, True))
    gradients = parameters * size
    return Need(held, max(size * batch * both + gradients, size * max(rows, tests) * forward))


def layout_of(experiment: Experiment, data: Data) -> Layout:
    """Where the parameters of one model lie."""
    model: PairMLP | GrokTransformer
    if isinstance(experiment.model, PairMLPConfig):
        model = PairMLP(experiment.model, n_tokens=data.n_tokens, n_answers=data.n_answers)
    else:
        model = GrokTransformer(
            cast(TransformerConfig, experiment.model),
            n_tokens=data.n_tokens,
            n_answers=data.n_answers,
            seq_len=data.seq_len,
        )
    return Layout.of({name: p.shape[1:] for name, p in model.named_parameters()})


def activations(experiment: Experiment, data: Data, *, backward: bool) -> int:
    """Numbers per row of data that are in memory together at most, in plain PyTorch.

    With `backward`, what each operation keeps and the gradients at the widest place; else the widest place alone.
    """
    config: Any = experiment.model
    if isinstance(config, PairMLPConfig):
        width, answers = config.width, data.n_answers
        widest = max(4 * width, 5 * answers) + max(width, 2 * answers)
        return 2 * width * config.depth + 2 * answers + max(width, 3 * answers) if backward else widest
    positions, d_model = data.seq_len, config.d_model
    outputs = data.n_answers if config.outputs == "answers" else data.n_tokens
    norms = 0 if config.norm == "none" else 2 * d_model
    of_layer = positions * (8 * d_model + norms + 2 * config.d_mlp + 3 * config.n_heads * positions)
    scores, hidden = 3 * config.n_heads * positions, 2 * config.d_mlp
    widest = max(positions * max(7 * d_model + scores, 3 * d_model + hidden), 5 * outputs)
    return config.n_layers * of_layer + 3 * outputs + positions * (2 * d_model + hidden) if backward else widest


def free_bytes(device: torch.device) -> int:
    """Memory of a GPU that can still be had, with what torch holds unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def first_wave(experiments: Sequence[Experiment], most: int | None = None) -> tuple[Ensemble, int]:
    """The ensemble of the first of the waves in which these runs train, and how many a wave has, `most` at most.

    As many as fit into memory; where it runs out after all, half as many. Raises MemoryError where one run alone is
    too large.
    """
    size = min(at_once(experiments), most or len(experiments))
    while True:
        first = split(list(experiments), size)[0]
        try:
            return Ensemble(first), size
        except torch.OutOfMemoryError:
            pass
        except RuntimeError as error:
            said = str(error)
            if "DefaultCPUAllocator" not in said and "Storage size calculation overflowed" not in said:
                raise
            why = said.rpartition("DefaultCPUAllocator: ")[2].partition(". ")[0]
            raise MemoryError(f"{first[0].name} does not fit into this machine's memory: {why}") from error
        forget()
        if len(first) == 1:
            raise too_large(first[0])
        size = -(-len(first) // 2)


def at_once(experiments: Sequence[Experiment], free: int | None = None) -> int:
    """How many of these runs, which an ensemble can hold, to train together: as many as fit into `free` bytes.

    None stands for the free memory of a GPU; on a CPU all go together then. Raises MemoryError where one run alone
    holds more than there is.
    """
    device = resolve_device(experiments[0].device)
    if free is None:
        if device.type != "cuda":
            return len(experiments)
        free = free_bytes(device)
    need = bytes_per_run(experiments[0], among=experiments)
    if need.held > free:
        raise too_large(experiments[0], among=experiments, free=free)
    return max(1, min(len(experiments), int(SHARE * free) // need.total))


def too_large(experiment: Experiment, among: Sequence[Experiment] = (), free: int | None = None) -> MemoryError:
    """The error that says how much one run needs (see `bytes_per_run`), and how much is free, if that is known."""
    need, device = bytes_per_run(experiment, among), resolve_device(experiment.device)
    if free is None and device.type == "cuda":
        free = free_bytes(device)
    there = "" if free is None else f", {free / 1e9:.3g} GB are free on {device}"
    return MemoryError(
        f"{experiment.name} needs {need.total / 1e9:.3g} GB for one run ({need.held / 1e9:.3g} GB throughout, "
        f"{need.passing / 1e9:.3g} GB in a step){there}: choose a smaller model, batch or filter window"
    )


def forget() -> None:
    """Give memory that torch holds unused on GPUs back to them."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def split(items: list, size: int) -> list[list]:
    """Waves of nearly one size, `size` at most."""
    waves = -(-len(items) // size)
    edges = [len(items) * i // waves for i in range(waves + 1)]
    return [items[a:b] for a, b in pairwise(edges)]
