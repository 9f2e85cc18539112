import json
from fractions import Fraction

import numpy as np
import pytest

from grokfast import EMA, Experiment, RunStore
from grokfast.sweeps import InProcess, plan
from grokfast.sweeps.grid import axes_of, expand

QUICK = Experiment.preset("quick")


def values(cells):
    return [tuple(cell.values.values()) for cell in cells]


def test_all_combinations_the_last_key_fastest():
    cells = expand(QUICK, {"optimizer.lr": [1e-2, 1e-3], "task.p": (13, 17)}, seeds=2)
    assert [list(cell.values) for cell in cells[:1]] == [["optimizer.lr", "task.p", "seed"]]
    assert values(cells)[:5] == [(1e-2, 13, 0), (1e-2, 13, 1), (1e-2, 17, 0), (1e-2, 17, 1), (1e-3, 13, 0)]
    assert len(cells) == 8
    assert cells[3].experiment == QUICK.override({"optimizer.lr": 1e-2, "task.p": 17, "seed": 1})


def test_seeds_begin_at_the_experiments():
    assert [cell.experiment.seed for cell in expand(QUICK.override({"seed": 7}), {}, seeds=3)] == [7, 8, 9]


def test_zip_takes_the_first_with_the_first():
    grid = {"optimizer.lr": [1e-2, 1e-3], "optimizer.weight_decay": [1, 3]}
    assert values(expand(QUICK, grid, zip=True)) == [(1e-2, 1.0), (1e-3, 3.0)]
    assert len(expand(QUICK, grid, zip=True, seeds=5)) == 10
    assert len(expand(QUICK, {"seed": [0, 0], "task.p": [13, 17]}, zip=True)) == 2


def test_random_cells_are_a_part_of_the_grid_in_its_order_and_always_the_same():
    grid = {"seed": range(100), "task.p": [13, 17, 19]}
    everything, some = values(expand(QUICK, grid)), values(expand(QUICK, grid, random=20))
    assert len(set(some)) == 20
    assert some == [cell for cell in everything if cell in some]
    assert some == values(expand(QUICK, grid, random=20))
    assert some != values(expand(QUICK.override({"seed": 1}), grid, random=20))
    assert values(expand(QUICK, grid, random=300)) == everything


def test_random_of_a_grid_too_large_to_write_down():
    grid = {"seed": range(10_000), "task.noise_seed": range(10_000), "task.split_seed": range(10_000)}
    assert len(expand(QUICK, grid, random=3)) == 3


def test_values_become_pythons_own_and_numbers_of_the_experiments_kind():
    grid = {"optimizer.weight_decay": np.array([1, 3]), "seed": np.arange(2), "filter": [None, EMA()]}
    cell = expand(QUICK, grid)[-1]
    assert [type(value) for value in cell.values.values()] == [float, int, EMA]


SEEDS = ("seed", "task.noise_seed", "task.split_seed", "schedule.batch_seed")


def test_numbers_of_any_kind_become_pythons_own():
    grid = {"seed": [np.int64(3), Fraction(4)], "optimizer.lr": [Fraction(1, 2), np.float32(2), 3]}
    axes = axes_of(QUICK, grid)
    assert axes == {"seed": [3, 4], "optimizer.lr": [0.5, 2.0, 3.0]}
    assert {type(value) for value in axes["optimizer.lr"]} == {float}
    assert json.loads(json.dumps(axes)) == axes


def test_counts_of_any_kind_can_be_stored(tmp_path):
    options = {
        "seeds": np.int64(2),
        "random": np.uint8(1),
        "checkpoint_every": np.float32(0.5),
        "ensemble": np.int16(1),
    }
    planned = plan(
        QUICK.override({"device": "cpu"}), {"task.p": [13, 17]}, store=tmp_path, runner=InProcess(), **options
    )
    json.dumps([group.to_dict() for group in planned.groups])
    with RunStore(tmp_path) as store:
        grid = store.sweeps.get(planned.sweep_id).grid
    assert (grid["seeds"], grid["random"], len(planned.runs)) == (2, 1, 2)


def test_seeds_end_where_seeds_do():
    last = QUICK.override({"seed": 2**63 - 2})
    assert [cell.experiment.seed for cell in expand(last, {}, seeds=2)] == [2**63 - 2, 2**63 - 1]
    with pytest.raises(ValueError, match="seeds must end at 9223372036854775807 at most, got 3 from"):
        expand(last, {}, seeds=3)


@pytest.mark.parametrize(
    ("grid", "options", "error", "message"),
    [
        ({"optimizer.weight_dekay": [1]}, {}, ValueError, r"did you mean 'optimizer.weight_decay'"),
        ({"filter.lamb": [1]}, {}, ValueError, "has no filter"),
        ({"seed": 3}, {}, TypeError, r"grid\['seed'\] must be a sequence"),
        ({"loss": "mse"}, {}, TypeError, r"grid\['loss'\] must be a sequence"),
        ({"seed": []}, {}, ValueError, r"grid\['seed'\] must have at least one value"),
        ({"optimizer.lr": [1, 2, 1.0]}, {}, ValueError, r"grid\['optimizer.lr'\] has the value 1.0 twice"),
        ({"task.p": [13, 1]}, {}, ValueError, r"cell task.p=1: p must be between 2"),
        (
            {"task.p": [13], "task.train_fraction": [0.5, 0.001]},
            {},
            ValueError,
            "fraction=0.001: train_frac",
        ),
        ({"optimizer.lr": ["fast"]}, {}, TypeError, "cell optimizer.lr='fast': optimizer.lr must be a number"),
        ({"task.operation": ["div"], "task.p": [13, 15]}, {}, ValueError, "task.p=15: p must be prime"),
        ({"seed": [1, 2], "task.p": [13]}, {"zip": True}, ValueError, "seed has 2, task.p has 1"),
        ({"seed": [1, 1], "task.p": [13, 13]}, {"zip": True}, ValueError, "zip meets 1, 13 twice"),
        ({"seed": [1, 2]}, {"random": 3}, ValueError, "random must be at most the 2 cells"),
        ({"seed": [1, 2]}, {"random": 0}, ValueError, "random must be at least 1"),
        ({"seed": [1, 2]}, {"random": 1, "zip": True}, ValueError, "not both"),
        ({"seed": [1, 2]}, {"seeds": 2}, ValueError, "seeds cannot be given"),
        ({"task.p": [13]}, {"seeds": 0}, ValueError, "seeds must be at least 1"),
        ({"seed": range(2_000_000)}, {}, ValueError, "at most 1,000,000 runs"),
        ({"seed": range(2000), "task.noise_seed": range(2000)}, {}, ValueError, "at most 1,000,000 runs"),
        ({"seed": range(10**30)}, {}, ValueError, "at most 1,000,000 runs"),
        ({"task.p": [13]}, {"seeds": 2**53 - 1}, ValueError, "at most 1,000,000 runs, this one 9,007,199,254,740,991"),
        ({"task.p": [13]}, {"seeds": 10**20}, ValueError, "seeds must be at most"),
        ({"task.p": [13]}, {"seeds": 2.0}, TypeError, "seeds must be an integer"),
        ({"seed": range(10**6), "task.noise_seed": range(10**6)}, {"random": 10**9}, ValueError, "at most 1,000,000"),
        ({key: range(10**6) for key in SEEDS}, {"random": 2}, ValueError, "too many to draw from"),
        ({"optimizer.betas": [({1: 2}, 0.9)]}, {}, TypeError, r"grid\['optimizer.betas'\] must have plain values"),
        ({"seed": [{1}]}, {}, TypeError, r"grid\['seed'\] must have plain values, got \{1\}"),
        ({"seed": np.zeros((2, 2))}, {}, TypeError, r"grid\['seed'\] must have plain values"),
        ({3: [1]}, {}, TypeError, "grid must have dotted names as keys, got 3"),
        ({"override": [1]}, {}, ValueError, "grid has an unknown key 'override'"),
        ({"optimizer.lr": [10**400]}, {}, ValueError, r"optimizer.lr must be in \[0"),
        ({}, {}, ValueError, "at least one key"),
        ([("seed", [1])], {}, TypeError, "grid must map"),
    ],
)
def test_bad_grids_are_named(grid, options, error, message):
    with pytest.raises(error, match=message):
        expand(QUICK, grid, **options)
