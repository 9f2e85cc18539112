"""Histories in `optimizer.state`, beside what the inner optimizer keeps there, and in its state dicts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grokfast.optim.history import history_of, is_key

FOREIGN_KEY = "grokfast_state"  # in a state dict that is not of torch's form: histories by the parameter's number


def all_params(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


class Aside:
    """Takes the histories out of `optimizer.state`, and gives them back.

    While the inner optimizer works it sees its own state only: many take an entry that is there for one that they made.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        self._taken: dict[Tensor, dict[str, Any]] = {}

    def take(self) -> dict[Tensor, dict[str, Any]]:
        for p in all_params(self._optimizer):
            if history := drop_history(self._optimizer.state, p):
                self._taken[p] = history
        return self._taken

    def give_back(self) -> None:
        states = self._optimizer.state
        for p, history in self._taken.items():
            states.setdefault(p, {}).update(history)
        self._taken = {}


def drop_history(states: Any, p: Tensor) -> dict[str, Any]:
    """Take a parameter's history out of `states`, and its entry, if it has nothing else; returns the history."""
    history = history_of(states.get(p))
    if history:
        for key in history:
            del states[p][key]
        if not states[p]:
            del states[p]
    return history


def with_histories(
    state_dict: dict[str, Any], params: list[Tensor], histories: Mapping[Tensor, dict[str, Any]]
) -> dict[str, Any]:
    """The inner optimizer's state dict, histories in the entries of its parameters, or beside all in any other form."""
    packed = _packed(state_dict)
    if len(packed) == len(params):
        state = dict(state_dict["state"])
        for index, p in zip(packed, params):
            if p in histories:
                state[index] = {**state.get(index, {}), **histories[p]}
        return {**state_dict, "state": state}
    numbered = {i: dict(histories[p]) for i, p in enumerate(params) if p in histories}
    return {**state_dict, FOREIGN_KEY: numbered} if numbered else state_dict


def split(state_dict: dict[str, Any], params: list[Tensor]) -> tuple[dict[str, Any], dict[Tensor, dict[str, Any]]]:
    """What `with_histories` was given: the inner optimizer's state dict, and the histories."""
    inner = dict(state_dict)
    numbered: Any = inner.pop(FOREIGN_KEY, {})
    packed: list[Any] = list(range(len(params)))
    if found := _packed(inner):
        packed, numbered, kept = found, {}, {}
        for index, entry in inner["state"].items():
            numbered[index] = history_of(entry)
            rest = {k: v for k, v in entry.items() if not is_key(k)} if numbered[index] else entry
            if rest or not numbered[index]:
                kept[index] = rest
        inner["state"] = kept
    return inner, {p: numbered[index] for index, p in zip(packed, params) if numbered.get(index)}


def _packed(state_dict: Any) -> list[Any]:
    """The numbers that stand for the parameters in a state dict of torch's form; none in any other."""
    groups = state_dict.get("param_groups")
    if not isinstance(state_dict.get("state"), dict) or not isinstance(groups, (list, tuple)):
        return []
    return [index for group in groups if isinstance(group, dict) for index in group.get("params", ())]
