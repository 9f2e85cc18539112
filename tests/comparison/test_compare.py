"""Whole comparisons of tiny runs: what is found, that nothing is done twice, JSON, Markdown and the report's data."""

import json
import math
import os
import signal

import numpy as np
import pytest

from grokfast.analysis import compare_arms
from grokfast.comparison import Cost, compare, contest, markdown, notes, pictures, section, task_result, to_dict
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
    assert len(fast["runs"]) == len({*fast["runs"]}) == 3
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
    said = " ".join(notes(task))
    assert "2 points" in said
    assert "seeds 100 to 102" in said
    assert "At most 60 steps" in said
    assert "50% of train" in said


def test_a_report_gets_figures_with_their_data_and_what_is_to_be_seen(found):
    data = section(found[0])
    assert data["table"] == [one.words() for one in found[0].arms]
    assert [row["arm"] for row in data["cells"]] == ["plain", "plain", "fast", "fast"]
    assert [figure["title"] for figure in data["figures"]] == ["forest plot", "Kaplan-Meier curves", "speed-ups"]
    for figure in data["figures"]:
        assert figure["draw"]().axes
        assert "fast " in figure["alt"]
        assert len({tuple(row) for row in figure["data"]}) == 1
    curve = [(float(row["step"]), float(row["share"])) for row in data["figures"][1]["data"] if row["arm"] == "fast"]
    assert curve[0] == (0, 0)
    assert curve[-1][1] == 1


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

    class Stored:
        sweep_id = ""

        def table(self):
            return {name: column for name, column in task.table.items() if name != "arm"}

    bare = task_result(task.contest, {}, dict.fromkeys(task.contest.entries, 0), Stored(), Stored())
    assert {(one.words()["cost"], one.words()["time"]) for one in bare.arms} == {("", "")}
    assert bare.seconds == pytest.approx(2 * task.table["seconds"].sum())
