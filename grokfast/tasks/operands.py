"""Where the operands of a data set of pairs stand, and whether it is addition."""

from __future__ import annotations

import torch

from grokfast.tasks.data import Data


def operand_columns(data: Data) -> list[int]:
    """Where the two operands stand in an input: the tokens that are not the same in all rows.

    Raises ValueError where they are not two, or the targets no one class a row.
    """
    train = data.train
    if data.n_tokens and not data.is_real and data.n_positions is None:
        columns = (train.inputs != train.inputs[:1]).any(0).nonzero()[:, 0].tolist()
        if len(columns) == 2:
            return columns
    raise ValueError(
        "task must ask one answer to two operands, got inputs "
        f"{list(train.inputs.shape)} and targets {list(train.targets.shape)}"
    )


def sign_of_sum(data: Data) -> int:
    """1 or -1: test answers are a + b, or a - b, mod n_answers, of operands below it. ValueError where they are not."""
    columns, n = operand_columns(data), data.n_answers
    a, b = data.test.inputs[:, columns].unbind(1)
    if all(int(split.inputs[:, columns].max()) < n for split in data.splits.values()):
        for sign in (1, -1):
            if torch.equal((a + sign * b) % n, data.test.targets):
                return sign
    raise ValueError(f"task must be a + b or a - b mod p, the answers to 0..{n - 1} are others")
