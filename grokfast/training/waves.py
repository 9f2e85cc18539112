"""How many runs fit into a device's memory at once, and the first of them as an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch

from grokfast.models.base import Need
from grokfast.models.runs import ALIGNMENT
from grokfast.schedules.batches import has_batches
from grokfast.tasks import Split
from grokfast.training.ensemble import Ensemble, choice_of, resolve_device, spec_of
from grokfast.training.experiment import Experiment
from grokfast.training.replay import LONGEST
from grokfast.transforms.base import Layout
from grokfast.transforms.chain import elements
from grokfast.transforms.flat import state_slots

SHARE = 0.9  # of the free memory that is planned with: blocks of memory are rounded up, graphs have some of their own


def bytes_per_run(experiment: Experiment, among: Sequence[Experiment] = ()) -> Need:
    """What a run of an experiment needs, by counting: weights, gradient, optimizer, filter, data, activations.

    Together with `among`, it has data sets as large as the largest of theirs.
    """
    data = experiment.task.build(seed=experiment.seed)
    others = {e.task.n_rows() or (e.task, e.seed): e for e in among}  # what else differs changes no size
    sets = [data, *(e.task.build(seed=e.seed) for e in others.values())]
    rows = {name: max(len(d.splits[name]) for d in sets) for name in data.splits}
    dtype = getattr(torch, experiment.precision)
    device, module = resolve_device(experiment.device), experiment.model.build(data)
    layout = Layout.of({name: p.shape[1:] for name, p in module.named_parameters()})
    parameters = -(-layout.size // ALIGNMENT) * ALIGNMENT
    slots = state_slots(experiment.optimizer, experiment.filter, layout, parameters, dtype)
    held = 3 * parameters * dtype.itemsize  # weights, gradient, weights at the end
    held += sum(slot.bytes for slot in slots.values())
    apart = experiment.optimizer.is_averaged or any(one.is_taken_anew for one in elements(experiment.filter))
    held += 2 * apart * parameters * dtype.itemsize  # weights elsewhere, and those to go back to
    held += sum(n * split_bytes(data.splits[name]) for name, n in rows.items())
    batch = min(experiment.schedule.batch_size or rows["train"], rows["train"])
    if batch < rows["train"] or has_batches(experiment.schedule.changes):
        steps = min(LONGEST, experiment.schedule.eval_every)
        held += 8 * batch * (1 + steps)
    choice = choice_of(experiment, device, data)
    spec = spec_of(experiment, device, data)
    need = choice.step.memory(spec, n_parameters=parameters, rows=rows, batch=batch, products=choice.products)
    return Need(held + need.held, need.passing)


def split_bytes(split: Split) -> int:
    """Of one row of a split."""
    return sum(t[:1].nbytes for t in (split.inputs, split.targets))


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
