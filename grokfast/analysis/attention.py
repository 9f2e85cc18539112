"""Where heads look, and clock or pizza: which of two algorithms adds (Zhong et al. 2023, arXiv 2306.17844)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfast import checks
from grokfast.analysis.alone import module_of
from grokfast.analysis.subject import runs_of
from grokfast.seeds import generator
from grokfast.tasks import ModularTask
from grokfast.tasks.data import Task
from grokfast.tasks.table import Table

PIECE = 4096  # rows evaluated at a time


@torch.no_grad()
def attention_maps(model: Any, inputs: Tensor) -> Tensor:
    """What heads look at: inputs [N, T] or [E, N, T], int64 -> [E, n_layers, N, n_heads, T, T].

    [..., i, j] is how much of position j goes into position i: softmax(q kᵀ / √d_head), 0 where a causal head does not
    look, α·softmax + (1 − α) where attention_rate α is not 1. model: a run, several, or a live transformer.
    Raises TypeError where the model has no attention, and for such inputs as it does not take.
    """
    module = module_of(model)
    if not hasattr(module, "attention_maps"):
        raise TypeError(f"model must be a transformer, with attention_maps, got {type(module).__name__}")
    maps: Tensor = module.attention_maps(inputs)
    return maps


def attention_pictures(model: Any, task: Table | None = None, *, query: int = -1, key: int = 0) -> Tensor:
    """Of each head a picture of a table: how much position `query` looks at `key`, with a and b as its axes.

    [E, n_layers, n_heads, n_symbols, n_symbols], at [..., a, b]; NaN where the table has no such row. The last position
    is "=" of layouts "equals" and "operator", b of "pair"; position 0 is a.
    Raises as attention_maps does, TypeError where the task is no table, ValueError where it is not of one operation on
    two operands, or where there is no such position.
    """
    table = _table(model, task)
    for name, position in (("query", query), ("key", key)):
        checks.integer(name, position, minimum=-table.seq_len, maximum=table.seq_len - 1)
    pieces = [attention_maps(model, some)[..., query, key] for some in table.inputs().split(PIECE)]
    maps = torch.cat(pieces, 2).transpose(2, 3)  # [E, L, H, N]
    (operands, _), *_ = table.tables().values()
    pictures = maps.new_full((*maps.shape[:-1], table.n_symbols, table.n_symbols), torch.nan)
    pictures[..., operands[:, 0], operands[:, 1]] = maps
    return pictures


def gradient_symmetricity(model: Any, task: Table | None = None, *, n_triples: int = 200, seed: int = 0) -> Tensor:
    """Mean cosine of ∂logit_c/∂E_a and ∂logit_c/∂E_b, [E] (section 4.1): near 1 for a pizza, lower for a clock.

    Over n_triples of a row (a, b) of the table and an answer c, drawn alike for all models; E are the embeddings at the
    two operands' positions, or one-hot vectors where the model has none.
    Raises as attention_pictures does, and TypeError where the model does not tell its embeddings.
    """
    table, module = _table(model, task), module_of(model)
    n = checks.integer("n_triples", n_triples, minimum=1)
    draws = generator(seed, "triples")
    rows = torch.randint(table.n_pairs, (n,), generator=draws)
    answers = torch.randint(table.n_answers, (n,), generator=draws)
    x = module.embedded(table.inputs()[rows]).detach().requires_grad_()  # [E, n, T, d]
    chosen = module.from_embedded(x)[:, torch.arange(n), answers]
    (gradient,) = torch.autograd.grad(chosen.sum(), x)
    b = 2 if table.layout == "operator" else 1
    return torch.cosine_similarity(gradient[:, :, 0].double(), gradient[:, :, b].double(), dim=-1).mean(1)


@torch.no_grad()
def distance_irrelevance(model: Any, task: Table | None = None) -> Tensor:
    """mean_d std_s M[s, d] / std M, [E] (section 4.1): small where a − b says much about the *correct* logit.

    M[s, d] is the logit of the right answer at a + b = s and a − b = d mod p. Of the paper's pizza .17, its clock .85.
    Raises as attention_pictures does, and ValueError where the task is not addition mod p.
    """
    table, module = _table(model, task), module_of(model)
    if not isinstance(table, ModularTask) or table.operation != "add" or table.n_pairs != table.p**2:
        raise ValueError(f"task must be a + b of all pairs mod p, a ModularTask, got {checks.shown(table)}")
    (operands, answers), *_ = table.tables().values()
    pieces = [
        module(inputs)[:, torch.arange(len(own)), own]
        for inputs, own in zip(table.inputs().split(PIECE), answers.split(PIECE))
    ]
    correct = torch.cat(pieces, 1).double()  # [E, p²]
    order = ((operands[:, 0] - operands[:, 1]) % table.p).argsort(stable=True)
    of_distance = correct[:, order].unflatten(1, (table.p, table.p))
    return of_distance.std(2, correction=0).mean(1) / correct.std(1, correction=0)


def _table(model: Any, task: Task | None) -> Table:
    runs = runs_of(model)
    if task is None and not runs:
        raise ValueError("task must say what the model learns, a table, got None")
    task = runs[0].experiment.task if task is None else task
    if not isinstance(task, Table):
        raise TypeError(f"task must be a table, such as a ModularTask, got {checks.shown(task)}")
    if task.arity != 2 or len(task.sizes()) != 1:
        raise ValueError(f"task must be one operation on two operands, got {checks.shown(task)}")
    return task
