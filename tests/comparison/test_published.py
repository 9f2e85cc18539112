"""`benchmarks/compare_filters.py`: the published speed-ups beside those that are found, also while a run goes on."""

import json

import pytest

from benchmarks import compare_filters
from grokfast import RunStore, train
from grokfast.comparison import PUBLISHED, contest
from grokfast.comparison.kept import Kept
from grokfast.comparison.record import finite
from grokfast.comparison.run import held
from grokfast.store.records import STANDARD, Record
from grokfast.sweeps import InProcess
from tests.comparison.common import TINY

LIMIT = TINY.schedule.steps


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What compare found of tiny runs, in a store."""
    root = tmp_path_factory.mktemp("runs")
    one = contest(TINY, ["paper-ema", "paper-ma", "ema", "ma"], budget=2, tuning=1, seeds=2)
    task = held(one, lambda planned: planned.train(), store=root, runner=InProcess())
    kept = Kept("compare-1234abcd", root)
    kept.begin([])
    kept.keep([task], {"quick": {}}, "grokfast compare quick")
    return kept, task


def made(kept, tmp_path, *words):
    compare_filters.main([str(kept.record()), "--out", str(tmp_path / "a.json"), *words])
    first, second = json.loads((tmp_path / "a.json").read_text())["groups"].values()
    return {row["arm"]: row for row in first}, {row["arm"]: row for row in second}


def test_the_speed_ups_are_those_of_the_comparison(found, tmp_path, capsys):
    kept, task = found
    of_the_paper, of_the_tuned = made(kept, tmp_path, "--picture", str(tmp_path / "a.png"))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    arms = {one.name: one for one in task.arms}
    assert [*of_the_paper] == ["adam", "paper-ema", "paper-ma"]
    assert [*of_the_tuned] == ["plain", "ema", "ma", "paper-ema", "paper-ma"]
    for name, row in of_the_tuned.items():
        assert row["median"][0] == finite(arms[name].summary.runs.t_generalize.median)
        assert row["said"] == ("2 of 2 seeds" if name == "plain" else f"{arms[name].speedup} ×")
    medians = {name: row["median"][0] for name, row in of_the_paper.items()}
    assert of_the_paper["paper-ema"]["speedup"][0] == medians["adam"] / medians["paper-ema"]
    assert of_the_paper["paper-ema"]["published_speedup"] == 39_890 / 910
    assert "published 43.8 ×, here " in capsys.readouterr().out
    assert [seed["seed"] for seed in of_the_paper["adam"]["seeds"]] == [100, 101]


def test_long_runs_of_the_baseline_take_its_place_as_far_as_they_have_come(found, tmp_path):
    kept, task = found
    baseline = next(one for one in task.arms if one.name == PUBLISHED).entry.untuned
    longer = baseline.override({"schedule.steps": 3 * LIMIT, "schedule.stop_after": 5, "seed": 7})
    with RunStore(tmp_path / "runs") as store:
        assert compare_filters.long_runs(tmp_path / "runs", baseline) == {}
        other = longer.override({"optimizer.weight_decay": 1.0, "schedule.steps": 5 * LIMIT})
        for seed, experiment in ((0, longer), (1, other), (2, longer.override({"schedule.steps": LIMIT}))):
            config = experiment.override({"seed": seed}).to_dict()
            under_way = store.create(config, preset="quick", version="none", device="cpu")
            values = dict.fromkeys(STANDARD, 0.1)
            store.append(under_way, [Record(step, values) for step in range(0, 2 * LIMIT + 1, 5)])
    alone, _ = made(kept, tmp_path, "--store", str(tmp_path / "runs"))
    assert alone["adam"]["seeds"] == [{"seed": 0, "step": 2 * LIMIT, "generalized": False}]
    median = alone["paper-ema"]["median"][0]
    assert alone["paper-ema"]["said"] == f"published 43.8 ×, here >{2 * LIMIT / median:.2f} ×"
    with RunStore(tmp_path / "runs") as store:
        ended = train(longer, store=store)
    both, _ = made(kept, tmp_path, "--store", str(tmp_path / "runs"))
    assert ended.t_generalize is not None
    assert both["adam"]["seeds"][1] == {"seed": 7, "step": ended.t_generalize, "generalized": True}
    assert both["adam"]["said"] == "1 of 2 seeds"
    assert both["adam"]["median"][0] == ended.t_generalize


def test_another_comparison_is_refused(tmp_path):
    one = contest(TINY, ["ema"], budget=1, tuning=1, seeds=1)
    task = held(one, lambda planned: planned.train(), store=tmp_path, runner=InProcess())
    kept = Kept("compare-1", tmp_path)
    kept.begin([])
    kept.keep([task], {"quick": {}}, "")
    with pytest.raises(ValueError, match="quick is without paper-ema, paper-ma, ma"):
        made(kept, tmp_path)
