"""docs/evidence.md: every stored result, with its command, device, versions and date."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from typing import Any

INTRODUCTION = """# Evidence

What was measured, and with what. Made by `python -m benchmarks.evidence --write` of `benchmarks/results/`; a test
holds the tables of the README and of the guides to it. Times are medians; × is a ratio to the first contender of the
same line, the median of ratios of rounds that took turns.
"""
COMMANDS = {  # of results that do not say it
    "cpu-layers-passive": "OMP_WAIT_POLICY=passive python -m benchmarks.bench_layers",
    "cpu-optimizer-passive": "OMP_WAIT_POLICY=passive python -m benchmarks.bench_optimizer",
    "cpu-parts-xeon": "OMP_WAIT_POLICY=passive python -m benchmarks.step_parts",
    "cpu-sweep": "python -m benchmarks.bench_sweep --cells 12",
    "cpu-training-avx2": "OMP_WAIT_POLICY=passive python -m benchmarks.bench_training",
    "cpu-training-xeon": "OMP_WAIT_POLICY=passive python -m benchmarks.bench_training --rounds 60",
    "cpu-transformer-nanda": "python -m benchmarks.bench_transformer --presets nanda",
    "cpu-transformer-xeon": "OMP_WAIT_POLICY=passive python -m benchmarks.bench_transformer",
    "grokfast": "python -m benchmarks.compare_filters found --store runs --out benchmarks/results/grokfast.json",
    "kernel-compilers": "python -m benchmarks.compilers",
    "kernel-instructions": "python -m benchmarks.count_instructions --out benchmarks/results/kernel-instructions.json",
    "kernel-resources": "python -m benchmarks.resources",
}


def page(results: Mapping[str, Any]) -> str:
    lines = [INTRODUCTION]
    for name, result in results.items():
        title = result.get("title") or {"recipes": "Recipes"}.get(name) or "Accelerators compared"
        lines += [f"## {title}", "", f"`{name}.json` · `{command(name, result)}` · {machine_of(result)}", ""]
        lines += [*_body(name, result), ""]
    return "\n".join(lines).rstrip() + "\n"


def command(name: str, result: Mapping[str, Any]) -> str:
    """What makes these results anew."""
    if "command" in result or name in COMMANDS:
        return str(result.get("command") or COMMANDS[name])
    module = name if name == "recipes" else f"bench_{name.removeprefix('cpu-').replace('-', '_')}"
    if importlib.util.find_spec(f"benchmarks.{module}") is None:
        raise LookupError(f"{name}.json does not say its command, and evidence_page.COMMANDS does not know it")
    return f"python -m benchmarks.{module}"


def machine_of(result: Mapping[str, Any]) -> str:
    machines = [result["machine"]] if "machine" in result else [one["machine"] for one in result.values()]
    said = dict.fromkeys(
        f"{one['device']}, {one['threads']} thread{'s' * (one['threads'] != 1)}, torch {one['torch']}"
        + (f", Triton {one['triton']}" if "triton" in one else "")
        + f", Python {one['python']}, grokfast {one['grokfast']}, {one['date']}"
        for one in machines
    )
    return "; ".join(said)


def _body(name: str, result: Mapping[str, Any]) -> Iterator[str]:
    if "sections" in result:
        yield from _timed(result["sections"])
    elif "tasks" in result:
        yield from _compared(result["tasks"])
    elif "findings" in result:
        yield from _found(result)
    elif "groups" in result:
        yield from _beside(result["groups"])
    elif name == "recipes":
        yield "Seed by seed in [recipes.md](recipes.md)."
    elif name == "kernel-resources":
        yield from _resources(result)
    elif name == "kernel-compilers":
        yield from _compilers(result["rows"])
    elif "steps" in result:
        yield from _instructions(result["steps"])
    else:
        yield from _plain(result)


def _table(columns: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |"


def _timed(sections: Mapping[str, Any]) -> Iterator[str]:
    def one(row: Mapping[str, Any]) -> str:
        return f"{row['name']} {row['median_ms']:.4g} ms ({row['ratio']:.2f} ×)"

    yield from _table(
        ("what", "contenders"), ((title, "; ".join(one(row) for row in rows)) for title, rows in sections.items())
    )


def _compared(tasks: list[dict[str, Any]]) -> Iterator[str]:
    def rows() -> Iterator[tuple[str, ...]]:
        for task in tasks:
            for arm in task["arms"]:
                low, high = arm["probability_interval"]
                median = arm["t_generalize"][0]
                yield (
                    task["task"],
                    arm["arm"],
                    f"{arm['generalized']} of {arm['n']} [{low:.0%}, {high:.0%}]",
                    f">{task['steps']:,}" if median is None else f"{median:,.0f}",
                    (arm.get("speedup") or {}).get("text", ""),
                )

    yield from _table(("task", "arm", "generalised, 95%", "median step", "× tuned AdamW, 95%"), rows())


def _beside(groups: Mapping[str, list[dict[str, Any]]]) -> Iterator[str]:
    """Medians of each group's arms, published and here; what the picture says of them."""

    def rows() -> Iterator[tuple[str, ...]]:
        for group, arms in groups.items():
            for arm in arms:
                published = "" if arm["published"] is None else f"{arm['published']:,}"
                median = arm["median"][0]
                yield group, arm["name"], published, "not reached" if median is None else f"{median:,.0f}", arm["said"]

    yield from _table(("group", "arm", "published, one seed", "median step", "said of it"), rows())


def _found(result: Mapping[str, Any]) -> Iterator[str]:
    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.4g}"

    def rows() -> Iterator[tuple[str, ...]]:
        for one in result["findings"]:
            published = (one["published"] or {}).get("value")
            interval = "" if None in one["interval"] else f" [{', '.join(map(number, one['interval']))}]"
            what = f"{one['what']}, {one['quantity']}"
            yield what, number(published), f"{number(one['estimate'])}{interval}", one["claim"] or "", one["verdict"]

    yield f"{result['summary'].capitalize()}."
    yield ""
    yield from _table(("what", "published", "here, 95%", "claim", "verdict"), rows())


def _resources(result: Mapping[str, Any]) -> Iterator[str]:
    rows, targets = result["rows"], ", ".join(map(str, result["machine"]["compiled_for"]))
    spilled = [row for row in rows if row["spilled_bytes"]]
    yield (
        f"{len(rows)} kernels as compiled for compute capabilities {targets}: at most "
        f"{max(row['registers'] for row in rows)} registers a thread and "
        f"{max(row['shared_bytes'] for row in rows):,} bytes of shared memory; {len(spilled)} keep "
        f"some registers in memory, at most {max((row['spilled_bytes'] for row in spilled), default=0)} bytes."
    )


def _instructions(steps: Mapping[str, list[list[Any]]]) -> Iterator[str]:
    """All launches of one model together; what was counted before the shared memory was has four columns."""

    def one(launches: list[list[Any]]) -> tuple[str, str]:
        shared = f"{sum(launch[5] for launch in launches) / 1e6:,.0f}" if len(launches[0]) > 5 else "not counted"
        return f"{sum(launch[3] for launch in launches):,}", shared

    columns = ("a training step, all launches of one model", "instructions of warps", "MB of shared memory")
    yield from _table(columns, ((step, *one(launches)) for step, launches in steps.items()))


def _compilers(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Each compiler's part of the kernels that are in danger of spilling."""

    def one(compiler: str) -> tuple[str, ...]:
        found = [row["found"][compiler] for row in rows if compiler in row["found"]]
        said = [numbers for numbers in found if not isinstance(numbers, str)]
        spilled = [bytes_spilled for _, bytes_spilled, _ in said if bytes_spilled]
        numbers = len(found), len(found) - len(said), len(spilled), max(spilled, default=0)
        return compiler, *map(str, numbers)

    compilers = dict.fromkeys(name for row in rows for name in row["found"])
    columns = ("compiler", "kernels", "not compiled", "that spill", "most bytes spilled and loaded again")
    yield from _table(columns, map(one, sorted(compilers)))


def _plain(result: Mapping[str, Any]) -> Iterator[str]:
    """What has a form of its own: its numbers by name."""

    def leaves(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, inner in value.items():
                yield from leaves(inner, f"{path}, {key}" if path else key)
        elif isinstance(value, list):
            yield path, ", ".join(map(str, value))
        else:
            yield path, str(value)

    yield from _table(
        ("what", "value"), leaves({k: v for k, v in result.items() if k not in ("title", "machine", "command")})
    )
