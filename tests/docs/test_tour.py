"""docs/tour.md, typed from its first line to its last in an empty directory."""

from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("tour", Path(__file__).with_name("tour.py"))
tour = importlib.util.module_from_spec(_spec)
sys.modules["tour"] = tour
_spec.loader.exec_module(tour)


def shape(line):
    """The line without what differs between runs and machines: numbers, ids, times, phases, folders, kernels."""
    line = re.sub(r"\S*/(?=(runs|quick-)\b|runs/)", "", line)
    line = re.sub(r"\b[0-9a-f]{6,8}\b", "ID", line)
    line = re.sub(r"[<>]?[−-]?\d([\d,.]*\d)?(e[+-]?\d+)?", "N", line)
    line = re.sub(r"N (h|min|s|ms)\b", "TIME", line)
    line = re.sub(r"N \[N, N\]", "N", line)
    line = re.sub(r"^Step: .*", "Step", line)
    line = re.sub(r"[▁-█]+", "", line)
    line = re.sub(r"\b(confusion|memorization|comprehension|grokking)\b", "PHASE", line)
    line = re.sub(r"generalised at step N, N× later|had not generalised after N steps", "THEN", line)
    return " ".join(line.split())


def missing(shown, said):
    """What is shown and not said after what stands before it; a terminal may break lines elsewhere."""
    rest, lost = " ".join(shape(line) for line in said), []
    for line in shown:
        if not shape(line):  # of a curve's bars nothing is left
            continue
        _, found, after = rest.partition(shape(line))
        if found:
            rest = after
        else:
            lost.append(line)
    return lost


def test_a_line_that_was_not_said_is_missed():
    said = [
        "memorised at step 60, generalised at step 960, 16× later (grokking, 1,260 steps in 4.0 s, 316 steps/s)",
        "b",
    ]
    other = "memorised at step 80, generalised at step 1,010, 12.6× later (grokking, 9 steps in 2 min, 9 steps/s)"
    assert missing([other, "b"], said) == []
    assert missing(["did not memorise in 4 steps"], said) == ["did not memorise in 4 steps"]
    assert missing(["b", "memorised"], said) == ["memorised"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="the tour is typed into bash")
def test_the_tour_can_be_typed_and_says_what_it_shows(tmp_path):
    page = tour.blocks(tour.PAGE.read_text())
    assert len(page) == tour.PAGE.read_text().count("```sh") >= 7
    for block, said in zip(page, tour.run(page, tmp_path, seconds=1200), strict=True):
        assert block.shown, block.typed
        assert not missing(block.shown, said), "\n".join([block.typed, *said])
    assert list(tmp_path.glob("runs/*/*.html"))
