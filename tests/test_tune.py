"""benchmarks.tune finds the fastest tile that is right, here with a timer that makes its times up."""

import json
from contextlib import contextmanager

import pytest
import torch

from grokfast.ops import configurations

pytest.importorskip("triton")
tune = pytest.importorskip("benchmarks.tune")
OPERATION = tune.Operation(None, [], ("BM", "BH"), [])
OWN = {"BM": 32, "BH": 32, "BK": 32, "num_warps": 8, "maxnreg": 192}


def tile_on_trial():
    return configurations._on_trial[-1].get("a kernel", None)


def problem(run=lambda tile: torch.ones(3)):
    """Whose results `run` makes from the tile that is on trial."""
    return tune.Problem(OPERATION, lambda: [run(tile_on_trial())], [torch.ones(3)], [torch.ones(3).double()], factor=2)


def distance(step, tile):
    """Seconds that are least at BM 128, BH 16, 4 warps and 3 stages."""
    best = {"BM": 128, "BH": 16, "num_warps": 4, "num_stages": 3}
    return 1 + sum(abs(tile.get(name, 2) - value) for name, value in best.items())


def test_neighbours_differ_in_one_thing_and_stay_within_limits():
    found = list(tune.neighbours(OWN, OPERATION))
    assert len(found) == 2 + 2 + 2 + 2 + 1
    for tile in found:
        changed = {name for name in tile.keys() | OWN.keys() if tile.get(name) != OWN.get(name)}
        assert len(changed) == 1
        assert "BK" not in changed
    edges = list(tune.neighbours({"BM": 128, "BH": 16, "num_warps": 16, "num_stages": 4}, OPERATION))
    assert [tile["BM"] for tile in edges].count(256) == 0
    assert all(tile["BH"] >= 16 and tile["num_warps"] <= 16 and tile["num_stages"] <= 4 for tile in edges)
    attention = tune.OPERATIONS["attention"]
    rows = [tile["BR"] for tile in tune.neighbours({"TP": 32, "BR": 32, "BK": 16, "num_warps": 4}, attention)]
    assert 16 not in rows  # a tile holds whole sequences


def test_the_fastest_tile_is_found_step_by_step():
    found = tune.tune(problem(), "a kernel", OWN, distance)
    assert {name: found.tile[name] for name in ("BM", "BH", "num_warps", "num_stages")} == {
        "BM": 128, "BH": 16, "num_warps": 4, "num_stages": 3,
    }  # fmt: skip
    assert (found.seconds, found.own_seconds) == (1, distance(None, OWN))
    assert found.is_worthwhile
    assert len({json.dumps(tile, sort_keys=True) for tile in found.tried}) == len(found.tried)


def test_when_time_is_over_the_best_so_far_is_taken(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(tune.time, "monotonic", lambda: next(clock))
    found = tune.tune(problem(), "a kernel", OWN, distance, deadline=5)
    assert len(found.tried) == 6
    assert found.seconds < found.own_seconds


def test_a_tile_that_is_wrong_or_cannot_be_had_or_spills_never_wins(monkeypatch):
    class Kernel:
        def __init__(self, n_spills):
            self.n_spills = n_spills

    compiled = []

    @contextmanager
    def launched():
        compiled.clear()
        yield compiled

    monkeypatch.setattr(tune, "launched", launched)

    def run(tile):
        if tile["BM"] == 64:
            return torch.full((3,), 1.1)
        if tile["BM"] == 16:
            raise RuntimeError("out of resource: shared memory")
        if tile["BH"] == 64:
            return torch.empty(3)  # not written: poisoned
        compiled.append(Kernel(n_spills=8 if tile["num_warps"] == 4 else 0))
        return torch.ones(3)

    found = tune.tune(problem(run), "a kernel", OWN, lambda step, tile: 1.0 if tile == OWN else 0.5)
    assert found.seconds == 0.5
    assert (found.tile["BM"], found.tile["num_warps"]) != (64, 4)
    assert found.tile["BM"] == 32
    assert found.tile["num_warps"] != 4
    assert found.tile["BH"] != 64
    assert not torch.are_deterministic_algorithms_enabled()


def test_where_nothing_is_faster_the_own_choice_stays():
    found = tune.tune(problem(), "a kernel", OWN, lambda step, tile: 1.0 if tile == OWN else 0.98)
    assert found.tile == OWN
    assert not found.is_worthwhile
    nothing = tune.tune(problem(lambda tile: torch.zeros(3)), "a kernel", OWN, distance)
    assert nothing.seconds is None
    assert not nothing.is_worthwhile


def test_the_table_is_written_entry_by_entry_and_read_by_the_operations(tmp_path):
    path = tmp_path / "table.json"
    better, no_better = tune.Found({"BM": 64}, 0.5, 1.0), tune.Found({"BM": 32}, 1.0, 1.0)
    tune.write(path, "sm_90", "one", better)
    tune.write(path, "sm_90", "two", no_better)
    tune.write(path, "sm_80", "one", tune.Found({"BM": 16}, 0.5, None))
    assert configurations.read(path) == {"sm_90": {"one": {"BM": 64}}, "sm_80": {"one": {"BM": 16}}}
    tune.write(path, "sm_90", "one", no_better)  # a later version's own choice is as fast
    assert configurations.read(path)["sm_90"] == {}
    assert set(json.loads(path.read_text())["about"]) == {"sm_90", "sm_80"}


SMALL = {"mlp": (16, 32, 16), "attention": (3, 16), "linear_cross_entropy": (16, 20), "pair_embed": (16,)}


@pytest.mark.parametrize("op", tune.OPERATIONS)
def test_every_operations_kernels_are_problems_that_their_own_choice_solves(op):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    operation, names = tune.OPERATIONS[op], []
    for one in tune.problems(operation, SMALL.get(op, (16,)), 1, 20, "ieee", "float32", device):
        for name, own in tune.own_tiles(one).items():
            names.append(name.partition(",")[0])
            assert own.keys() & set(operation.sizes)
            assert tune.seconds_of(one, name, own, lambda step, tile: 2.0) == 2.0
    backward = {"mlp": ["bwd_data", "bwd_w_in", "bwd_w_out"], "linear_cross_entropy": ["bwd_x", "bwd_weight"]}
    assert names == [f"{op} {kernel}" for kernel in ("fwd", *backward.get(op, ["bwd"]))]


def test_all_operations_are_tuned_into_one_table(tmp_path, monkeypatch, capsys):
    device, path = "cuda" if torch.cuda.is_available() else "cpu", tmp_path / "table.json"
    for name, operation in tune.OPERATIONS.items():
        monkeypatch.setattr(operation, "shapes", [SMALL.get(name, (16,))])
    monkeypatch.setattr(tune, "PRECISIONS", [("ieee", "float32")])
    monkeypatch.setattr(tune, "neighbours", lambda tile, _: [{**tile, "num_warps": 2}])
    monkeypatch.setattr(tune, "TOKENS", 3)
    tune.tune_all([*tune.OPERATIONS], [1], 9, 600, path, "sm_90", device, lambda step, tile: float(tile["num_warps"]))
    tiles = configurations.read(path)["sm_90"]
    assert {name.split()[0] for name in tiles} == {*tune.OPERATIONS} - {"attention"}  # which has one warp there
    assert all(tile["num_warps"] == 2 for tile in tiles.values())
    assert "the fastest 2000000.0 µs" in capsys.readouterr().out
    tune.tune_all(["mlp"], [1], 9, 0, tmp_path / "none.json", "sm_90", device, lambda step, tile: 1.0)
    assert not (tmp_path / "none.json").exists()  # no time


@pytest.mark.skipif(torch.cuda.is_available(), reason="it would tune")
def test_without_a_gpu_it_says_so(capsys, tmp_path):
    assert tune.main(["--out", str(tmp_path / "table.json")]) == 1
    assert "needs an NVIDIA GPU" in capsys.readouterr().out
    assert not (tmp_path / "table.json").exists()
