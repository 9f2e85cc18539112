"""What is known, and from what: docs/evidence.md of benchmarks/results/*.json, and the figures of tables held to them.

python -m benchmarks.evidence --check   # says which figure of README or docs is not that of its results; exit status 1
python -m benchmarks.evidence --write   # puts those figures there, and makes docs/evidence.md and docs/recipes.md anew

`figures()` is the map: which cell of which table, or which words of a page, are which value of which file. Dates are
never written: where a result is of another date than its section says, somebody has to read that section again.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import evidence_page, recipes

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "evidence.md"


class Figure(NamedTuple):
    """One figure of a page: `text` is what its results say.

    row, column: of the table's cell, by how the row begins and by the column's name; no row: anywhere in the section.
    words: a pattern whose only group is the figure; none: all of the cell, but bold type.
    under: the heading of its section; none: any.
    """

    page: str
    results: str
    text: str
    date: str
    row: str = ""
    column: str = ""
    words: str = r"^\W*?\**([^*]*?)\**$"
    under: str = ""


def ms(row: Mapping[str, Any], digits: int = 3) -> str:
    value = row["median_ms"]
    return f"{value:.{max(1, digits - len(str(int(value))))}f}" if value >= 1 else f"{value:.2f}"


def ratio(row: Mapping[str, Any]) -> str:
    return f"{row['ratio']:.2f} ×"


def both(row: Mapping[str, Any]) -> str:
    return f"{ms(row)} ({ratio(row)})"


def figures(results: Mapping[str, Any]) -> Iterator[Figure]:
    """All of them, of what is in `results`, by file."""

    def timed(name: str, section: str, who: str) -> dict[str, Any]:
        ((_, rows),) = ((title, rows) for title, rows in results[name]["sections"].items() if title.startswith(section))
        (found,) = (row for row in rows if row["name"] == who)
        return found

    def figure(page: str, name: str, text: str, row: str = "", column: str = "", **more: str) -> Figure:
        of = results[name]
        date = of["machine"]["date"] if "machine" in of else ""
        return Figure(page, name, text, date, row, column, **more)

    # Training steps. In README and speed.md a row is a recipe and its columns are two contenders and their ratio.
    steps = {
        "quick": "cpu-training", "chughtai-s5": "cpu-training", "a5": "cpu-training", "prieto": "cpu-training",
        "digits": "cpu-training", "parity": "cpu-training", "nanda": "cpu-transformer-nanda",
        "power": "cpu-transformer", "multihop": "cpu-transformer",
    }  # fmt: skip
    shown = {"README.md": ("nanda", "chughtai-s5", "quick", "power", "multihop"),
             "docs/speed.md": ("quick", "chughtai-s5", "a5", "prieto", "digits", "parity")}  # fmt: skip
    for page, names in shown.items():
        for name in names:
            eager, ours = (timed(steps[name], f"{name}:", who) for who in ("eager PyTorch", "grokfast"))
            cell = partial(figure, page, steps[name], row=f"`{name}`:")
            yield cell(ms(eager), column="eager PyTorch, ms")
            yield cell(ms(ours), column="grokfast, ms")
            yield cell(ratio(ours), column="ratio")
    tokens = [timed("cpu-training", "quick-tokens:", who) for who in ("eager PyTorch", "grokfast")]
    for text, column in zip(
        (ms(tokens[0]), ms(tokens[1]), ratio(tokens[1])), ("eager PyTorch, ms", "grokfast, ms", "ratio")
    ):
        yield figure("docs/speed.md", "cpu-training", text, "`quick`'s task", column)
    for name in ("nanda", "power", "grokfast", "multihop"):
        source = steps.get(name, "cpu-transformer")
        for who in ("eager PyTorch", "grokfast --engine reference", "grokfast"):
            found = timed(source, f"{name}:", who)
            cell = partial(figure, "docs/speed.md", source, column=f"`{name}`")
            yield cell(both(found), row=who)
            if who != "grokfast --engine reference":
                yield cell(f"{int(found['peak_memory_mb'] + 0.5)}", row=f"peak memory beyond imports, MB: {who}")
    compiled = timed("cpu-transformer-nanda", "nanda:", "torch.compile")
    yield figure("docs/speed.md", "cpu-transformer-nanda", both(compiled), "torch.compile", "`nanda`")

    # The optimizer.
    fused, ours, loop = (
        timed("cpu-optimizer", "10 M", who)
        for who in ("torch AdamW(fused=True), no filter", "GrokFast(AdamW, EMA)", "AdamW(foreach) + plain-loop EMA")
    )
    cell = partial(figure, "README.md", "cpu-optimizer", row="GrokFast(AdamW, EMA), 10 M parameters")
    yield cell(ms(fused, 2), column="eager PyTorch, ms")
    yield cell(ms(ours, 2), column="grokfast, ms")
    yield cell(ratio(ours), column="ratio")
    yield figure("README.md", "cpu-optimizer", ratio(ours), words=r"([\d.]+ ×) torch's fused AdamW at 10 M")
    yield figure("README.md", "cpu-optimizer", ratio(loop), words=r"where the plain loop costs ([\d.]+ ×)")

    for name in results["cpu-transforms"]["sections"]:
        transform, _, size = name.rpartition(", ")
        if transform in ("EGD", "Nuclear"):
            continue
        together = transform.count(",") > 0
        row = "`OrthoGrad`, `EMA`, `NormClip` together" if together else f"`{transform}`"
        ours = timed("cpu-transforms", name, f"GrokFast(AdamW, {transform})")
        column = "227k parameters, 12 tensors" if size.startswith("227k") else "10 M, 150 tensors"
        yield figure("docs/transforms.md", "cpu-transforms", f"{ours['ratio']:.2f}", row, column)

    # Imports, modules of one's own, sweeps, the store.
    imported = results["cpu-import"]["sections"]["15 fresh processes each"][1]["median_ms"]
    yield figure("docs/speed.md", "cpu-import", f"{imported:.0f}", words=r"its wrapper add ([\d.]+) ms")
    for section, words in (("3,763", r"([\d.]+ ×) with 3,763 rows"), ("batches", r"([\d.]+ ×) with 256")):
        yield figure("docs/your-own.md", "cpu-module", ratio(timed("cpu-module", section, "grokfast")), words=words)
    swept = results["cpu-sweep"]["rows"]
    for row, name in {
        "12 processes of an eager": "eager PyTorch script, one process after the other",
        "`grokfast sweep`, one": "grokfast sweep, 1 process",
        "`grokfast sweep`, a process": "grokfast sweep, 2 processes",
    }.items():
        yield figure("docs/sweeps.md", "cpu-sweep", f"{swept[name]['seconds_for_all']:.1f}", row, "seconds")
        yield figure("docs/sweeps.md", "cpu-sweep", ratio(swept[name]), row, "as fast")
    store = results["cpu-store"]
    for text, words in {
        f"{store['bytes'] / 1e6:.0f}": r"evaluations each takes ([\d.]+) MB",
        f"{store['seconds']['list']:.1f}": r"to list it takes ([\d.]+) s",
        f"{store['seconds']['table']:.1f} ": r"to make its table ([\d.]+ )s",
        f"{store['seconds']['all_curves']:.1f}": r"to load all curves ([\d.]+) s",
    }.items():
        yield figure("docs/sweeps.md", "cpu-store", text, words=words)

    yield from _compared(results, figure)
    yield from _recipes(results, figure)
    yield from _reproduced(results, figure)


def _compared(results: Mapping[str, Any], figure: Callable[..., Figure]) -> Iterator[Figure]:
    """Accelerators: every arm of docs/compare.md, and README's choice of them."""
    chosen = {"ema": "EMA", "ma": "MA", "norm-clip": "row-norm clip", "muon": "Muon", "orthograd": "OrthoGrad",
              "lion": "Lion", "mse": "squared error instead of cross entropy"}  # fmt: skip
    rows = {"add-mlp": "a + b mod 97, MLP", "mul-mlp": "a · b mod 97, MLP", "mul-decoder": "a · b mod 53, decoder",
            "a5": "composition in A5, MLP"}  # fmt: skip
    for task in results["compare"]["tasks"]:
        row = rows.get(task["task"])
        for arm in task["arms"]:
            median = arm["t_generalize"][0]
            steps = f">{task['steps']:,}" if median is None else f"{median:,.0f}"
            cell = partial(figure, "docs/compare.md", "compare", row=arm["arm"], under=task["task"])
            yield cell(steps, column="median step", words=r"^(>?[\d,]+)")
            if arm["arm"] == "plain":
                if row:
                    yield figure("README.md", "compare", steps, row, words=r"AdamW: ([\d,]+) steps")
                continue
            yield cell(arm["speedup"]["text"], column="× tuned AdamW")
            if row and arm["arm"] in chosen:
                times = arm["speedup"]["text"].split(" ")[0].replace("<", "< ")
                yield figure("README.md", "compare", f"{times} ×", row, chosen[arm["arm"]])
    for name, task, arm, words in (
        ("compare-two-seeds", "mul-decoder", "plain", r"a median of ([\d,]+) steps for AdamW"),
        ("compare-two-seeds", "mul-decoder", "ema", r"AdamW and (\S+ × \[[^\]]*\]) for EMA"),
        ("compare-two-seeds", "mul-decoder", "mse", r"(\S+ × \[[^\]]*\]) for squared error"),
        ("compare-two-seeds", "mul-mlp", "schedule-free", r"schedule-free AdamW takes ([\d,]+) steps of mul-mlp"),
        ("compare-a5-decoder", "mul-decoder", "plain", r"with them the median is ([\d,]+) steps"),
        ("compare-a5-decoder", "mul-decoder", "ema", r"and EMA (\S+ × \[[^\]]*\]) as soon"),
        ("compare-a5-decoder", "a5", "ema", r"there EMA is (\S+ × \[[^\]]*\])"),
    ):
        arms = next(one["arms"] for one in results[name]["tasks"] if one["task"] == task)
        found = next(one for one in arms if one["arm"] == arm)
        times = "" if found["speedup"] is None else found["speedup"]["text"].replace(" [", " × [")
        says_median = arm in ("plain", "schedule-free")
        text = f"{found['t_generalize'][0]:,.0f}" if says_median else times
        yield figure("docs/compare.md", name, text, words=words)


def _recipes(results: Mapping[str, Any], figure: Callable[..., Figure]) -> Iterator[Figure]:
    for name in ("quick", "s5", "a5", "d30", "parity"):
        first = results["recipes"][name]["seeds"][0]
        cell = partial(figure, "docs/experiments.md", "recipes", row=f"`{name}`", column="what happened (seed 0)")
        yield cell(f"{first['t_memorize']:,}", words=r"memorises at (\d[\d,]*\d|\d)")
        yield cell(f"{first['t_generalize']:,}", words=r"generalises at (\d[\d,]*\d|\d)")


def _reproduced(results: Mapping[str, Any], figure: Callable[..., Figure]) -> Iterator[Figure]:
    noisy = "test accuracy, 30% wrong labels"
    findings = {(one["quantity"], one["what"]): one for one in results["swaroop2026"]["findings"]}
    for row, key in {
        "written down, cos → cos": ("accuracy, written down", "cos → cos"),
        "written down, square → cos": ("accuracy, written down", "square → cos"),
        "written down, square → square": ("accuracy, written down", "square → square"),
        "trained, 30% wrong labels": (noisy, "trained"),
        "its waves, square → cos": (noisy, "its waves, square → cos"),
        "its waves, cos → cos": (noisy, "its waves, cos → cos"),
        "its waves, square → square": (noisy, "its waves, square → square"),
        "clean labels, when memorised": ("test accuracy, when memorised", "its waves, square → cos"),
        "control: untrained, measured phases": (noisy, "control: waves of the untrained network, square → cos"),
        "control: untrained, φ_out": (noisy, "control: untrained, φ_out := φ_a + φ_b, square → cos"),
    }.items():
        text = f"{findings[key]['estimate']:.4f}".removeprefix("0")
        yield figure("docs/inside.md", "swaroop2026", text, row, "here, 95%", words=r"^(\.\d+)")

    estimates = {one["what"]: f"{one['estimate']:.3f}".removeprefix("0") for one in results["davies2023"]["findings"]}
    for what, words in {
        "grokking: test accuracy, one that helps": r"explains (\.\d+) of a grokking run's",
        "control: a parabola": r"parabola (\.\d+)",
        "double descent: helps, harms, helps": r"the second one harmful, (\.\d+) of a",
        "control: two that help": r"two that help (\.\d+)",
        "at 100 less at 6,000": r"6,000 of them (\.\d+) \[",
    }.items():
        yield figure("docs/inside.md", "davies2023", estimates[what], words=words)


class Place(NamedTuple):
    """Where a figure stands in its page, and its section: what is between two headings, and before the first."""

    start: int
    end: int
    section: str


def place(figure: Figure, text: str) -> Place | str:
    """Where it stands; or why it does not."""
    for section, begin in _sections(text):
        if figure.under and not section.startswith(f"{figure.under}\n"):
            continue
        for start, end in _cells(section, figure) if figure.row else [(0, len(section))]:
            found = re.search(figure.words, section[start:end])
            if found:
                at = begin + start
                return Place(at + found.start(1), at + found.end(1), section)
    return "is not there"


def _sections(text: str) -> Iterator[tuple[str, int]]:
    """What is between two headings, from the heading's words on, and where that begins."""
    begins = [0, *(found.end() for found in re.finditer(r"^##+ ", text, re.M))]
    for begin, end in zip(begins, [*begins[1:], len(text)]):
        yield text[begin:end], begin


def _cells(section: str, figure: Figure) -> Iterator[tuple[int, int]]:
    """Where the cell of this row and column lies, without the blanks around it, in every table that has both."""
    columns: list[str] = []
    at = 0
    for line in section.splitlines(keepends=True):
        if not line.startswith("|"):
            columns = []
        else:
            bars = [found.start() for found in re.finditer(r"(?<!\\)\|", line)]
            spans = [(a + 1, b) for a, b in pairwise(bars)]
            cells = [line[a:b].strip() for a, b in spans]
            if not columns:
                columns = cells
            elif figure.column in columns and len(cells) == len(columns) and _begins(cells[0], figure.row):
                a, b = spans[columns.index(figure.column)]
                padding = len(line[a:b]) - len(line[a:b].lstrip())
                yield at + a + padding, at + a + padding + len(line[a:b].strip())
        at += len(line)


def _begins(cell: str, row: str) -> bool:
    """The cell begins with these words, and not with longer ones of theirs."""
    return cell.startswith(row) and not re.match(r"[\w-]| --", cell[len(row) :])


def differences(results: Mapping[str, Any], pages: Mapping[str, str]) -> Iterator[tuple[Figure, Place | None, str]]:
    """Every figure that is not as its results say, where it stands if it does, and what is wrong, in words."""
    for figure in figures(results):
        text = pages[figure.page]
        found = place(figure, text)
        name = " / ".join(
            word for word in (figure.page, figure.under, figure.row, figure.column or figure.words) if word
        )
        if isinstance(found, str):
            yield figure, None, f"{name}: {figure.text} of {figure.results}.json {found}"
            continue
        stands = text[found.start : found.end]
        if stands != figure.text:
            yield figure, found, f"{name}: {stands!r} is {figure.text!r} in {figure.results}.json"
        near = found.section + text.split("\n## ")[0] if figure.row else text
        if figure.date and figure.date not in near:
            yield figure, None, f"{name}: {figure.results}.json is of {figure.date}, which is not said there"


def load() -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def made(results: Mapping[str, Any]) -> dict[str, str]:
    """The pages that are made of results alone."""
    return {"docs/evidence.md": evidence_page.page(results), "docs/recipes.md": recipes.page(results["recipes"])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true")
    what.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    results = load()
    pages = {name: (ROOT / name).read_text() for name in {figure.page for figure in figures(results)}}
    if wanted.write:
        while any(found for _, found, _ in differences(results, pages)):  # each moves those behind it
            figure, found = next((figure, found) for figure, found, _ in differences(results, pages) if found)
            text = pages[figure.page]
            pages[figure.page] = text[: found.start] + figure.text + text[found.end :]
        for name, text in {**pages, **made(results)}.items():
            (ROOT / name).write_text(text)
    said = [words for _, _, words in differences(results, pages)]
    said += [
        f"{name}: is not what --write makes"
        for name, text in made(results).items()
        if (ROOT / name).read_text() != text
    ]
    print("\n".join(said) or "every figure is that of its results")
    sys.exit(1 if said else 0)


if __name__ == "__main__":
    main()
