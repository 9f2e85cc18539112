"""Contenders take turns, so that a machine whose speed drifts does not favour one of them."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from grokfast.training.machine import machine


@dataclass
class Contender:
    """`step` is timed, `repeat` times in a row; `prepare` runs before, untimed. On a GPU a round ends when it is idle.

    `bytes` and `flops`: what a step has to move and to compute at least.
    """

    step: Callable[[], Any]
    prepare: Callable[[], Any] = lambda: None
    repeat: int = 1
    is_on_gpu: bool = False
    bytes: int = 0
    flops: int = 0


def interleave(
    contenders: Mapping[str, Contender], *, baseline: str, rounds: int, warmup: int = 3
) -> list[dict[str, Any]]:
    """A row per contender: its times in ms (p20, median, p80) and the median of its per-round ratios to `baseline`.

    On a GPU also how long the host was busy; bytes moved per second in GB/s, and TFLOP/s, where they are known.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    host: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for turn in range(warmup + rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            if name not in times:
                continue
            try:
                elapsed, launched = _time(contenders[name])
            except torch.OutOfMemoryError as error:  # beside the others
                _leave_out(name, error)
                del times[name]
                continue
            if turn >= warmup:
                times[name].append(elapsed)
                host[name].append(launched)
    baseline = baseline if baseline in times else next(iter(times), "")
    rows = []
    for name, values in times.items():
        ratios = [v / b for v, b in zip(values, times[baseline])]
        p20, p80 = (statistics.quantiles(values, n=5)[i] for i in (0, 3))
        median, one = statistics.median(values), contenders[name]
        row = {
            "name": name,
            "p20_ms": round(p20 * 1e3, 4),
            "median_ms": round(median * 1e3, 4),
            "p80_ms": round(p80 * 1e3, 4),
            "ratio": round(statistics.median(ratios), 3),
        }
        if one.is_on_gpu:
            row["host_ms"] = round(statistics.median(host[name]) * 1e3, 4)
        if one.bytes:
            row["GB_per_s"] = round(one.bytes / median / 1e9, 1)
        if one.flops:
            row["TFLOP_per_s"] = round(one.flops / median / 1e12, 3)
        rows.append(row)
    return rows


def _time(one: Contender) -> tuple[float, float]:
    """Seconds of a step, and of those how long the host was busy."""
    one.prepare()
    if one.is_on_gpu:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    for _ in range(one.repeat):
        one.step()
    launched = time.perf_counter() - begin
    if one.is_on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - begin) / one.repeat, launched / one.repeat


def report(title: str, sections: dict[str, list[dict[str, Any]]], out: Path | None) -> None:
    """Print the tables, and write them as JSON where a file is named."""
    about = machine()
    print(f"{title}: {about.get('gpu', about['device'])}, {about['threads']} threads, torch {about['torch']}, "
          f"{about['date']}, OMP_WAIT_POLICY {about['omp_wait_policy']}")  # fmt: skip
    for section, rows in sections.items():
        print(f"\n{section}")
        for row in rows:
            more = [f"host {row['host_ms']:.3f} ms"] if "host_ms" in row else []
            more += [f"{row['GB_per_s']:,.0f} GB/s"] if "GB_per_s" in row else []
            more += [f"{row['TFLOP_per_s']:,.2f} TFLOP/s"] if "TFLOP_per_s" in row else []
            print(
                f"  {row['name']:<44} {row['median_ms']:>10.3f} ms  {row['ratio']:>7.2f} ×  {'  '.join(more)}".rstrip()
            )
    write(title, sections, out)


def write(title: str, sections: dict[str, list[dict[str, Any]]], out: Path | None) -> None:
    """As JSON where a file is named; after every section, so that what is stopped leaves what it has found."""
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        whole = {"title": title, "machine": machine(), "sections": sections}
        out.write_text(json.dumps(whole, indent=1) + "\n")


def made(makers: Mapping[str, Callable[[], Contender]]) -> dict[str, Contender]:
    """The contenders that can be had, each called once; of another it is said why not."""
    found = {name: _tried(name, make) for name, make in makers.items()}
    return {name: one for name, one in found.items() if one is not None}


def _tried(name: str, make: Callable[[], Contender]) -> Contender | None:
    """Where it fails, what it had is let go, so that the others have its memory."""
    one = None
    try:
        one = make()
        one.prepare()
        one.step()
        if one.is_on_gpu:
            torch.cuda.synchronize()
        return one
    except Exception as error:  # a compiler's, torch.OutOfMemoryError, ...: the others are measured all the same
        _leave_out(name, error)
    del one
    free()
    return None


def _leave_out(name: str, error: Exception) -> None:
    print(f"{name}: left out, {type(error).__name__}: {(str(error).splitlines() or [''])[0]}", flush=True)


def free() -> None:
    """Give back the device memory of what is no longer referred to."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def one_by_one(
    makers: Mapping[str, Callable[[], Contender]], *, rounds: int, warmup: int = 1,
    keep: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> list[dict[str, Any]]:  # fmt: skip
    """As `compare`, of contenders that do not fit into memory together: each is made, timed and let go.

    `keep` gets what there is after each of them, so that what is stopped leaves what it has found.
    """
    rows: list[dict[str, Any]] = []
    for name, make in makers.items():
        for row in compare({name: make}, rounds=rounds, warmup=warmup):
            rows.append(row | {"ratio": round(row["median_ms"] / (rows or [row])[0]["median_ms"], 3)})
            keep([dict(row) for row in rows])
        free()
    return rows


def compare(makers: Mapping[str, Callable[[], Contender]], *, rounds: int, warmup: int = 3) -> list[dict[str, Any]]:
    """`interleave` of those that can be had; the first of them is the baseline."""
    found = made(makers)
    return interleave(found, baseline=next(iter(found)), rounds=rounds, warmup=warmup) if found else []
