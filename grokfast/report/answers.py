"""Which answers are right, and when they became it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from grokfast import checks
from grokfast.analysis import precision_recall
from grokfast.analysis.alone import Alone, alone
from grokfast.report.figures import Axis, category_map, csv, legend, slider, table
from grokfast.report.material import Chapter, Material
from grokfast.report.page import Figure
from grokfast.tasks.operands import operand_columns
from grokfast.tasks.table import Table
from grokfast.training.result import RunResult

SYMBOLS = 256  # along an axis at most
NUMBERS = 200_000  # answers of all stages together, in the page's data
CLASSES = 40  # of a table of classes
SPLITS = ("train", "test")
PIECE = 4096  # rows evaluated at a time
COLORS = {
    "training pair, right": "#0072B2",
    "training pair, wrong": "#D55E00",
    "test pair, right": "#009E73",
    "test pair, wrong": "#9AA3AD",
}


def right_pairs(material: Material) -> list[Figure]:
    """A p × p picture for each stage: which pairs have the right answer."""
    task = material.run.experiment.task
    if not isinstance(task, Table) or task.arity != 2 or len(task.sizes()) != 1:
        raise TypeError(f"task must be a table of one operation on two operands, got {checks.shown(task)}")
    n = task.n_symbols
    if n > SYMBOLS:
        raise ValueError(f"task must have at most {SYMBOLS} symbols for a picture of all pairs, got {n:,}")
    (operands, answers), *_ = task.tables().values()
    truth = np.full((n, n), -1)
    truth[tuple(operands.T.numpy())] = answers.numpy()
    columns = operand_columns(material.data)
    split_of = np.full((n, n), -1)
    for at, split in enumerate(SPLITS):
        split_of[tuple(material.data.splits[split].inputs[:, columns].T.numpy())] = at
    said = {stage.steps: _said(stage, columns, n) for stage in material.some_stages(NUMBERS // n**2)}
    axes = Axis("a", 0, n - 1), Axis("b", 0, n - 1)
    frames, shares = [], []
    for step, own in said.items():
        kinds = np.where(split_of < 0, -1, 2 * split_of + (own != truth))
        picture = category_map(kinds, colors=[*COLORS.values()], y=axes[0], x=axes[1])
        frames.append((f"{step:,}", picture))
        train, test = ((own == truth)[split_of == at].mean() for at in (0, 1))
        shares.append(f"at step {step:,} {train:.0%} of training and {test:.0%} of test pairs")
    there = split_of >= 0
    a, b = there.nonzero()
    rows = {"a": a, "b": b, "split": np.array(SPLITS)[split_of[there]], "answer": truth[there]}
    rows |= {f"said at step {step}": own[there] for step, own in said.items()}
    why = "more would make the page too large" if len(material.stages) > 1 else "the run has no snapshots"
    of = f"after {len(frames)} of its steps" if len(frames) > 1 else f"the final weights only: {why}"
    noise = " Right is what the operation gives, also where a training label is wrong on purpose."
    corrupted = material.data.corrupted
    is_noisy = corrupted is not None and bool(corrupted.any())
    return [
        Figure(
            "Which pairs are right",
            legend(COLORS) + slider(frames),
            f"A picture of all pairs of operands, right and wrong; right are {'; '.join(shares)}.",
            csv(rows),
            f"Each pixel is a pair a ∘ b; {of}.{noise if is_noisy else ''}",
        )
    ]


def _said(stage: RunResult, columns: list[int], n: int) -> np.ndarray:
    """[n, n], the answer to each pair of a split, -1 to what is in none."""
    (one,) = alone(stage)
    found = np.full((n, n), -1)
    for split in SPLITS:
        found[tuple(one.data.splits[split].inputs[:, columns].T.numpy())] = _answers(one.of(split))
    return found


@torch.no_grad()
def _answers(one: Alone) -> np.ndarray:
    """[N], what the model answers to the rows of a split."""
    rows = torch.arange(len(one.targets))
    found = [one.outputs(rows=piece)[0].argmax(-1) for piece in rows.split(PIECE)]
    return torch.cat(found).cpu().numpy()


def classes(material: Material) -> list[Figure]:
    """Precision and recall of each class on the test split, of tasks with few of them that are no table."""
    task, data = material.run.experiment.task, material.data
    if isinstance(task, Table) or data.is_real or data.n_answers > CLASSES:
        return []
    found = precision_recall(material.run, split="test")["test"]
    names = task.labels(seed=material.run.experiment.seed).answers
    there = (found.support[0] > 0).nonzero()[:, 0].tolist()
    columns: dict[str, Any] = {"class": [names.get(c, str(c)) for c in there]}
    for name in ("precision", "recall", "f1"):
        columns[name] = getattr(found, name)[0][there].tolist()
    columns["test rows"] = found.support[0][there].tolist()
    worst = int(np.nanargmin(columns["recall"]))
    return [
        Figure(
            "Answers by class",
            table(columns, sortable=True),
            f"A table of {len(there)} classes of the test split; least often found is {columns['class'][worst]}, "
            f"{columns['recall'][worst]:.0%}.",
            csv(columns),
            "Precision: of the rows that are said to be of a class, the share that is; recall: of the rows of a class, "
            "the share that is said to be.",
        )
    ]


CHAPTER = Chapter(
    "answers", "Answers", "What the network gets right, and when.",
    {"picture of right pairs": right_pairs, "answers by class": classes},
)  # fmt: skip
