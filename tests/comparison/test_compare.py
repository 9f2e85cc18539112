"""Whole comparisons of tiny runs: what is found, that nothing is done twice, JSON, Markdown and the report's data."""

import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from grokfast import Experiment
from grokfast.analysis import compare_arms
from grokfast.comparison import (
    ArmResult,
    Cost,
    compare,
    contest,
    from_dict,
    markdown,
    notes,
    pictures,
    task_result,
    to_dict,
)
from grokfast.comparison.run import held
from grokfast.sweeps import InProcess, SweepInterrupted
from tests.comparison.common import FAST, FORM, TINY
from tests.sweeps.common import Watch

ARMS = [FAST, "paper-ema"]
FIXED = {name: Cost(step=0.01, ratio=ratio, low=ratio, high=ratio, whole=0.02 * ratio)
         for name, ratio in {"plain": 1.0, "adam": 0.9, "fast": 0.5, "paper-ema": 1.1}.items()}  # fmt: skip


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    store = tmp_path_factory.mktemp("compared")
    one = contest(TINY, ARMS, **FORM)
    return held(one, lambda planned: planned.train(), costs=FIXED, store=store, runner=InProcess()), store


def test_statistics_are_those_of_compare_arms_against_both_baselines(found):
    task, _ = found
    assert [one.name for one in task.arms] == ["plain", "adam", "fast", "paper-ema"]
    for base, read in (("plain", lambda one: one.speedup), ("adam", lambda one: one.published)):
        for expected in compare_arms(task.table, base=base):
            one = next(one for one in task.arms if one.name == expected.arm)
            if expected.arm == base:
                assert read(one) is None
            else:
                assert str(read(one)) == str(expected.ratio.inverse)
            if base == "plain":
                assert (one.summary.p, one.summary.p_holm) == (expected.p, expected.p_holm) or math.isnan(expected.p)
    assert task.arms[2].summary.runs.generalized == 3  # else there is nothing to see here


def test_time_is_the_median_step_by_what_a_step_takes(found):
    for one in found[0].arms:
        median = one.summary.runs.t_generalize.median
        assert one.seconds == median * FIXED[one.name].whole
        assert one.words()["time"].startswith(">") == math.isinf(median)


def test_all_of_it_is_json_with_the_space_and_every_cell(found):
    task, _ = found
    plain = json.loads(json.dumps(to_dict(task), allow_nan=False))
    assert (plain["tuning_seeds"], plain["final_seeds"]) == ([0, 1], [100, 101, 102])
    fast = plain["arms"][2]
    assert fast["space"] == {
        "optimizer.lr": {"kind": "log", "low": 0.005, "high": 0.1},
        "model.init_scale": {"kind": "among", "values": [0.5, 2.0]},
    }  # fmt: skip
    assert [cell["n"] for cell in fast["cells"]] == [2, 2]
    assert sum(cell["chosen"] for cell in fast["cells"]) == 1
    assert fast["point"] == next(cell["point"] for cell in fast["cells"] if cell["chosen"])
    assert fast["differs"] == {"loss": "mse"}
    assert len(fast["runs"]) == len({run["run_id"] for run in fast["runs"]}) == 3
    assert [run["seed"] for cell in fast["cells"] for run in cell["runs"]] == [0, 1] * 2
    assert fast["cost"]["ratio"] == 0.5
    assert plain["arms"][3]["cells"] == []
    assert plain["arms"][0]["speedup"] is None


def test_tables_and_notes_say_what_was_done(found):
    task, _ = found
    text = markdown([task], {"quick": {}}, "grokfast compare quick")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(task.arms)
    assert len({row.count("|") for row in rows}) == 1
    assert markdown([task, task], {}, "").count("## quick") == 2
    assert "grokfast compare quick" in text
    assert all(f"- {note}" in text.splitlines() for note in notes(task))
    said = " ".join(notes(task))
    assert "2 points" in said
    assert "seeds 100 to 102" in said
    assert "At most 60 steps" in said
    assert "50% of train" in said


def test_what_is_written_is_read_back(found):
    task, _ = found
    plain = json.loads(json.dumps(to_dict(task)))
    again = from_dict(plain)
    assert json.loads(json.dumps(to_dict(again))) == plain
    assert [one.words() for one in again.arms] == [one.words() for one in task.arms]
    assert [one.cells for one in again.arms] == [one.cells for one in task.arms]
    for name, entry in again.contest.entries.items():
        assert entry.cells == task.contest.entries[name].cells


@pytest.mark.parametrize("preset", ["quick", "grokfast"])
def test_every_arm_s_experiment_is_read_back(preset, found):
    """Of the record of one task the arms are replaced by those of another contest, without their runs."""
    one = contest(Experiment.preset(preset).override({"criteria.generalize": "train"}), budget=4, tuning=2, seeds=3)
    arms = [ArmResult(entry=entry, chosen=0, cells=(), summary=found[0].arms[0].summary, published=None, cost=None)
            for entry in one.entries.values()]  # fmt: skip
    plain = json.loads(json.dumps(to_dict(replace(found[0], contest=one, arms=arms))))
    for arm in plain["arms"]:  # all have plain AdamW's runs
        arm["runs"] = to_dict(found[0])["arms"][0]["runs"]
        arm["cells"] = [{"point": {}, "runs": arm["runs"]}] if arm["space"] else []
    again = from_dict(plain).contest
    assert {name: entry.untuned for name, entry in again.entries.items()} == {
        name: entry.untuned for name, entry in one.entries.items()
    }
    for name, entry in again.entries.items():
        known = one.entries[name]
        assert entry.arm.space_of(entry.untuned) == known.arm.space_of(known.untuned)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda plain: plain.pop("arms"), "'arms' is missing"),
        (lambda plain: plain["arms"][0].pop("untuned"), "'untuned' is missing"),
        (lambda plain: plain["arms"][0]["runs"][0].pop("steps"), "'steps' is missing"),
        (lambda plain: plain["experiment"].update(task=None), "task must be"),
        (lambda plain: plain.update(arms=3), "cannot be read"),
    ],
)
def test_what_is_no_record_is_said(found, change, message):
    plain = json.loads(json.dumps(to_dict(found[0])))
    change(plain)
    with pytest.raises(ValueError, match=message):
        from_dict(plain)


def test_pictures_are_written(found, tmp_path):
    for title, draw in pictures(found[0]).items():
        assert draw(tmp_path / f"{title}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_comparison_again_trains_nothing(found):
    task, store = found
    watch = Watch()
    again = held(
        contest(TINY, ARMS, **FORM), lambda planned: planned.train([watch]), costs=FIXED, store=store,
        runner=InProcess(),
    )  # fmt: skip
    assert not watch.events
    assert to_dict(again) == to_dict(task)


def test_an_interrupted_one_goes_on_to_the_same_result(found, tmp_path):
    watch = Watch(lambda event: len(watch.begun()) == 10, lambda: os.kill(os.getpid(), signal.SIGINT))
    options = {**FORM, "store": tmp_path, "runner": InProcess()}
    with pytest.raises(SweepInterrupted):
        compare(TINY, ARMS, observers=[watch], **options)
    watch = Watch()
    again = compare(TINY, ARMS, observers=[watch], **options)
    assert len(watch.begun()) == 2 * 4 + 4 * 3 - 9  # in the finals, as the search has 8 runs; nine had ended
    for name, column in again.table.items():
        if name not in ("seconds", "run_id"):
            assert np.array_equal(column, found[0].table[name], equal_nan=column.dtype.kind == "f"), name
    assert all(one.cost is not None and one.cost.ratio > 0 for one in again.arms)


def test_costs_that_were_not_measured_are_empty(found):
    task, _ = found
    bare = task_result(task.contest, task.searched, task.table)
    assert {(one.words()["cost"], one.words()["time"]) for one in bare.arms} == {("", "")}
