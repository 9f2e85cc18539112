"""Contests: equal budgets, the search on its own seeds, the best point by censored medians, and what is refused."""

import math

import pytest

from grokfast import Experiment, RunStore
from grokfast.analysis import median_time, success_interval, summarize
from grokfast.comparison import ARMS, Accelerator, Among, Log, best, contest
from grokfast.comparison.contest import APART
from grokfast.sweeps import InProcess
from tests.analysis.runs import CONFUSED, FAILED, table
from tests.comparison.common import FAST, FORM, TINY
from tests.sweeps.common import Watch

TRANSFORMER = Experiment.preset("grokfast").override({"task.p": 7, "model.d_model": 16, "model.d_mlp": 32})


def test_every_arm_has_one_budget_and_the_baselines_are_always_there():
    found = contest(TINY, ["ema", FAST], **FORM)
    assert [*found.entries] == ["plain", "adam", "ema", "fast"]
    assert {name: len(entry.points) for name, entry in found.entries.items() if entry.is_searched} == {
        "plain": 2, "ema": 2, "fast": 2,
    }  # fmt: skip
    assert found.entries["adam"].points == ({},)
    assert {*found.entries["plain"].points[0]} == {"optimizer.lr", "optimizer.weight_decay"}


@pytest.mark.parametrize("experiment", [TINY, TRANSFORMER], ids=["mlp", "decoder"])
def test_every_arm_is_a_change_of_plain_adamw_and_has_its_own_values_among_its_points(experiment):
    found = contest(experiment, **FORM)
    assert {*found.entries, *found.left_out} == {*ARMS}
    for entry in found.entries.values():
        assert entry.cells[0] == entry.untuned
        assert len({*entry.cells}) == len(entry.points)
        assert entry.untuned.schedule.stop_after == 0
        assert (entry.untuned.task, entry.untuned.model) == (experiment.task, experiment.model)
    plain = found.entries["plain"].untuned
    assert (plain.optimizer.rule, plain.filter, plain.optimizer.lr) == ("adamw", None, experiment.optimizer.lr)
    assert found.entries["adam"].untuned.optimizer.weight_decay == 0


def test_the_paper_s_arms_are_the_paper_s():
    found = contest(TRANSFORMER, ["paper-ema", "paper-ma"], **FORM).entries
    recipe = Experiment.preset("grokfast")
    assert found["paper-ema"].untuned.optimizer == recipe.optimizer
    assert found["paper-ema"].untuned.filter == recipe.filter
    assert found["paper-ma"].untuned.flat()["filter.window_size"] == 100


def test_search_and_finals_are_two_sweeps_on_seeds_of_their_own(tmp_path):
    found = contest(TINY, [FAST], **FORM)
    options = {"store": tmp_path, "runner": InProcess()}
    search = found.search(**options).train()
    cells = found.cells(found.searched(search))
    assert {name: [cell.n for cell in own] for name, own in cells.items()} == {"plain": [2, 2], "fast": [2, 2]}
    finals = found.finals({"plain": 1, "adam": 0, "fast": 0}, **options).train()
    table = found.table({"plain": 1, "adam": 0, "fast": 0}, finals)
    assert table["arm"].tolist() == ["plain"] * 3 + ["adam"] * 3 + ["fast"] * 3
    assert table["seed"].tolist() == [APART, APART + 1, APART + 2] * 3
    with RunStore(tmp_path, create=False) as store:
        assert {run.config["seed"] for run in store.list(sweep_id=search.sweep_id)} == {0, 1}
        for run_id, arm in zip(table["run_id"], table["arm"]):
            config = Experiment.from_dict(store.get(str(run_id)).config)
            cell = found.entries[arm].cells[1 if arm == "plain" else 0]
            assert config == cell.override({"seed": config.seed})
    watch = Watch()
    found.search(**options).train([watch])
    assert not watch.events


def test_arms_that_share_a_point_share_its_runs(tmp_path):
    twins = [
        Accelerator(name=name, changes={}, space={"optimizer.lr": Among(0.01, lr)})
        for name, lr in (("one", 0.02), ("two", 0.03))
    ]
    found = contest(TINY, twins, budget=2, tuning=1, seeds=2)
    options = {"store": tmp_path, "runner": InProcess()}
    search = found.search(**options)
    assert len(search.runs) == 2 + 1 + 1  # plain's two points, of which the untuned one is the twins', too
    searched = found.searched(search.train())
    first = {
        name: [
            i
            for arm, point, i in zip(searched["arm"], searched["point"], searched["run_id"])
            if arm == name and not point
        ]
        for name in found.entries
    }
    assert len(first["one"]) == 1
    assert first["one"] == first["two"] == first["plain"] != first["adam"]
    finals = found.finals(dict.fromkeys(found.entries, 0), **options)
    assert len(finals.runs) == 2 * 2
    rows = found.table(dict.fromkeys(found.entries, 0), finals.train())
    ids = {name: [i for i, arm in zip(rows["run_id"], rows["arm"]) if arm == name] for name in found.entries}
    assert ids["one"] == ids["two"] == ids["plain"] != ids["adam"]


def cells(*of_points):
    """Summaries of points, each the steps at which its runs generalised, None: not in 1,000; or whole rows."""
    rows = [
        one if isinstance(one, tuple) else (60, one, 1000 if one is None else one)
        for point in of_points
        for one in point
    ]
    number = [i for i, point in enumerate(of_points) for _ in point]
    return summarize(table(*rows, point=number), by=["point"])


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([[400, 500, 600], [300, 350, 400], [700, 100, 900]], 1),
        ([[None] * 3, [900, 950, None], [None, None, 100]], 1),  # a censored median is no small one
        ([[500, 400, None], [500, 500, 600]], 1),  # of equal medians the larger share
        ([[500, 500, 500], [500, 500, 500]], 0),
        ([[None] * 3, [None] * 3], 0),  # the untuned one
        ([[FAILED] * 3, [CONFUSED] * 3], 1),
        ([[FAILED] * 3, [None, None, 900]], 1),
    ],
)
def test_the_best_point_has_the_least_censored_median(points, expected):
    assert best(cells(*points)) == expected


def test_scores_are_kaplan_and_meiers_and_wilsons():
    (cell,) = cells([300, None, 500])
    assert cell.t_generalize == median_time([300, 1000, 500], [True, False, True])
    assert cell.probability_interval == success_interval(2, 3)
    assert math.isinf(cells([300, None, None])[0].t_generalize.median)


def test_arms_that_do_not_apply_are_left_out_and_say_why():
    hinge = Experiment.preset("parity").override({"task.n": 8, "task.n_train": 40, "task.n_test": 20, "model.width": 8})
    found = contest(hinge, ["label-smoothing", "stablemax"], **FORM)
    assert "unknown option 'loss.label_smoothing'" in found.left_out["label-smoothing"]
    assert "stablemax takes classes" in found.left_out["stablemax"]
    squares = TINY.override({"loss": "mse"})
    assert contest(squares, ["mse"], **FORM).left_out == {"mse": "it is the same as plain"}


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"budget": 5}, ValueError, "budget must be a multiple of the 2 tuning seeds, .* got 5"),
        ({"budget": 1}, ValueError, "no arm can fill it"),
        ({"budget": 0}, ValueError, "budget must be at least 1, got 0"),
        ({"tuning": 0}, ValueError, "tuning must be between 1 and 100"),
        ({"tuning": 101}, ValueError, "tuning must be between 1 and 100"),
        ({"seeds": 0}, ValueError, "seeds must be at least 1"),
        ({"arms": ["emaa"]}, ValueError, r"arms must be one of .*did you mean 'ema'"),
        ({"arms": "ema"}, TypeError, "arms must be a sequence of names"),
        ({"arms": [FAST, Accelerator(name="fast", changes={})]}, ValueError, "two that are 'fast'"),
        ({"arms": [Accelerator(name="plain", changes={})]}, ValueError, "two that are 'plain'"),
        ({"experiment": "quick"}, TypeError, "experiment must be an Experiment"),
        (
            {"arms": [Accelerator(name="few", changes={}, space={"model.bias": Among(True, False)})], "budget": 6},
            ValueError, "arm 'few': space has 2 different points, 3 are wanted",
        ),
        (
            {"arms": [Accelerator(name="odd", changes={}, space={"filter.lamb": Log(1, 2)})]},
            ValueError, "arm 'odd' has an axis of 'filter.lamb', which is not there",
        ),
        (
            {"arms": [Accelerator(name="new", changes={"filter": "ema+neuralgrok(strength=2)"})]},
            ValueError, "arm 'new' needs the transform 'neuralgrok', which is not registered",
        ),
        (
            {"arms": [Accelerator(name="new", changes={"optimizer": "lionn"})]},
            ValueError, r"arm 'new' needs the optimizer 'lionn', which is not registered .did you mean 'lion'",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said(arguments, kind, message):
    with pytest.raises(kind, match=message):
        contest(**{"experiment": TINY, **FORM, **arguments})
