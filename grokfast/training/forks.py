"""Forks: runs that begin with the state that another run had after some step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grokfast.store import RunStore
from grokfast.store.records import Record, records_of
from grokfast.training.ensemble import Ensemble
from grokfast.training.experiment import Experiment, origin_of
from grokfast.training.result import stored_experiment
from grokfast.training.state import State
from grokfast.transforms.chain import named
from grokfast.transforms.flat import state_names

_PRECISIONS = {torch.float32, torch.float64}


@dataclass(frozen=True, kw_only=True)
class Fork(State):
    """The state of another run: its id, its experiment, and the shapes of its weights by name."""

    run_id: str
    experiment: Experiment
    shapes: Mapping[str, tuple[int, ...]]


def fork_of(store: RunStore, origin: str) -> Fork:
    """What a run with this origin begins with. Raises StoreError where it is not in the store, or damaged."""
    run_id, step = origin_of(origin)
    experiment = stored_experiment(store.get(run_id))
    tensors, meta = store.snapshots.state(run_id, step)
    weights, _ = store.snapshots.weights(run_id, step)
    shapes = {name: tuple(t.shape) for name, t in weights.items()}
    state = State.of(tensors, meta, f"the snapshot of {origin}")
    return Fork(**vars(state), run_id=run_id, experiment=experiment, shapes=shapes)


def fitted(state: State, ensemble: Ensemble) -> State:
    """The state as one that the runs of `ensemble` can take up; that of a run itself stays what it is.

    Weights go on as they are. So does what the optimizer keeps, if the new one keeps the same tensors (as AdamW and
    Adam do), and what a transform keeps, if there is one of the same kind, name and start, with a state of the same
    shapes.
    Anything else begins anew, and counts its steps from here. Floating-point numbers take the experiment's precision.

    Raises ValueError, which names the parameter, where the model has others.
    """
    if not isinstance(state, Fork):
        return state
    layout, experiment = ensemble.runs.layout, ensemble.experiments[0]
    ours = dict(zip(layout.names, map(tuple, layout.shapes)))
    for name in ours | dict(state.shapes):
        if (here := ours.get(name)) != (there := state.shapes.get(name)):
            says = ("absent" if shape is None else str(list(shape)) for shape in (there, here))
            raise ValueError(f"a fork of {state.run_id} must have its parameters: {name} is {', here '.join(says)}")
    blank = {name: torch.zeros_like(t, device="cpu") for name, t in ensemble.checkpoint(0).items()}
    tensors = {**blank, "parameters": state.tensors["parameters"].to(blank["parameters"].dtype)}
    before = state_names(state.experiment.optimizer, state.experiment.filter, layout)
    kinds, were = ({"optimizer": None, **_kinds(e)} for e in (experiment, state.experiment))
    begun: dict[str, int] = {}
    sizes = {layout.size, ensemble.flat.shape[1]}
    for part, names in state_names(experiment.optimizer, experiment.filter, layout).items():
        theirs = before.get(part, {})
        goes_on = part in were and kinds[part] == were[part] and theirs.keys() == names.keys()
        pairs = [(names[name], state.tensors[theirs[name]]) for name in names] if goes_on else []
        taken = {name: like for name, tensor in pairs if (like := _like(tensor, blank[name], sizes)) is not None}
        if goes_on and len(taken) == len(names):
            tensors |= taken
            begun[part] = state.begun.get(part, 0)
        elif names:
            begun[part] = state.steps
    return State(state.steps, state.seconds, tensors, state.diverged_at, {part: at for part, at in begun.items() if at})


def history(store: RunStore, fork: Fork, columns: Sequence[str]) -> list[Record]:
    """The evaluations of the other run up to the fork, with the columns of this one: NaN where they have no such."""
    records = [record for record in records_of(store.curves(fork.run_id)) if record.step <= fork.steps]
    return [replace(r, values={name: r.values.get(name, float("nan")) for name in columns}) for r in records]


def begin(store: RunStore, run_id: str) -> None:
    """Give a fork that is yet to begin its first evaluations and checkpoint: for who has it trained elsewhere."""
    experiment = stored_experiment(store.get(run_id))
    if experiment.origin is None or store.has_checkpoint(run_id):
        return
    fork, ensemble = fork_of(store, experiment.origin), Ensemble([experiment.override({"device": "cpu"})])
    state = fitted(fork, ensemble)
    store.truncate(run_id, -1)
    store.append(run_id, history(store, fork, ensemble.columns))
    store.save_checkpoint(run_id, state.tensors, state.meta)


def check_origins(experiments: Sequence[Experiment], store: RunStore | None, ensemble: Ensemble | None = None) -> None:
    """Raise ValueError or StoreError where forks cannot begin, in such an ensemble if one is given."""
    for origin in {e.origin for e in experiments if e.origin is not None}:
        if store is None:
            raise ValueError(f"origin is of a store, which must be given, got {origin!r}")
        fork = fork_of(store, origin)
        if ensemble is not None:
            fitted(fork, ensemble)


def _kinds(experiment: Experiment) -> dict[str, tuple[type, int | str]]:
    return {name: (type(one), one.start) for name, one in named(experiment.filter).items()}


def _like(tensor: Tensor, own: Tensor, sizes: set[int]) -> Tensor | None:
    """In the shape and dtype of `own`; None: it is something else. A row of parameters, which has one of the sizes, is
    longer by a few zeros where it lies in the one pass."""
    if tensor.dtype is not own.dtype and not {tensor.dtype, own.dtype} <= _PRECISIONS:
        return None
    if tensor.shape != own.shape:
        if tensor.shape[:-1] != own.shape[:-1] or not {tensor.shape[-1], own.shape[-1]} <= sizes:
            return None
        n = min(sizes)
        tensor = torch.nn.functional.pad(tensor[..., :n], (0, own.shape[-1] - n))
    return tensor.to(own.dtype)
