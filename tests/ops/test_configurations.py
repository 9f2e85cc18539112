"""Which tiles kernels use, by GPU and class of shapes."""

import json

import pytest
import torch

from grokfast.ops import configurations, layer_norm, linear_cross_entropy, mlp, pair_embed
from grokfast.ops.configurations import PATH, key, read, tile_for, trying


def test_shapes_and_rows_come_in_classes():
    name = key("mlp fwd", torch.float32, "ieee", (97, 200, 128), 3830)
    assert name == "mlp fwd, float32 ieee, 128-256-128, few"
    assert name == key("mlp fwd", torch.float32, "ieee", (65, 129, 128), 1)
    assert name != key("mlp fwd", torch.float32, "ieee", (64, 129, 128), 1)
    assert key("mlp fwd", torch.bfloat16, "bf16", (1, 1, 1), 1 << 15) == "mlp fwd, bfloat16 bf16, 1-1-1, many"


def test_the_table_of_a_gpu_goes_before_an_operations_own_choice(tmp_path, monkeypatch):
    x, own, found = torch.zeros(1), {"BM": 32, "num_warps": 8}, {"BM": 64, "num_warps": 4}
    assert tile_for(x, "mlp fwd", "ieee", (128, 512, 128), 10, own) is own
    (tmp_path / "table.json").write_text(
        json.dumps({"about": {}, "tiles": {"sm_90": {"mlp fwd, float32 ieee, 128-512-128, few": found}}})
    )
    monkeypatch.setattr(configurations, "read", lambda: read(tmp_path / "table.json"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device.index))
    configurations._table.cache_clear()
    tables = [configurations._table(torch.device("cuda", minor)) for minor in (0, 1)]
    configurations._table.cache_clear()
    assert tables[1] == {}
    with trying(tables[0]):
        assert tile_for(x, "mlp fwd", "ieee", (128, 300, 100), 10, own) == found
        assert tile_for(x, "mlp fwd", "ieee", (128, 300, 100), 1 << 15, own) == own
        assert tile_for(x, "mlp fwd", "tf32", (128, 300, 100), 10, own) == own
        assert tile_for(x.double(), "mlp fwd", "ieee", (128, 300, 100), 10, own) == own
    assert tile_for(x, "mlp fwd", "ieee", (128, 300, 100), 10, own) is own


def test_the_shipped_table_names_what_exists():
    for gpu, tiles in read(PATH).items():
        assert gpu.startswith("sm_")
        for name, tile in tiles.items():
            assert name.split()[0] in ("mlp", "attention", "linear_cross_entropy", "pair_embed", "layer_norm")
            assert all(isinstance(value, int) for value in tile.values())


def test_a_kernel_runs_with_the_tile_that_was_chosen(monkeypatch):
    pytest.importorskip("triton")
    from grokfast.ops.mlp import kernels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, w_in, w_out = (torch.randn(shape, device=device) for shape in ((40, 16), (32, 16), (16, 32)))
    expected = mlp(x, w_in, None, w_out, None, backend="triton")
    tile = {**kernels.configuration("fwd", "ieee", 16, 32, 16), "BM": 16, "num_warps": 4, "num_stages": 3}
    seen, launch = [], kernels.launch

    def noted(kernel, grid, *arguments, **options):
        seen.append((grid[0], options["BM"], options["num_stages"]))
        launch(kernel, grid, *arguments, **options)

    monkeypatch.setattr(kernels, "launch", noted)
    with trying({key("mlp fwd", x.dtype, "ieee", (16, 32, 16), 40): tile}):
        got = mlp(x, w_in, None, w_out, None, backend="triton")
    assert seen == [(3, 16, 3)]
    torch.testing.assert_close(got, expected)


def test_other_models_change_no_tile(monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(configurations, "MANY_ROWS", 20)
    asked = []

    class Asked(dict):
        def get(self, name, own):
            asked.append(name)
            return own

        def __bool__(self):
            return True

    for models in (1, 3):
        x, weight, bias = (torch.ones(models, *shape, requires_grad=True) for shape in ((9, 4), (4, 4), (4,)))
        pairs = torch.zeros(models, 9, 2, dtype=torch.int64)
        with trying(Asked()):
            outs = (
                mlp(x, weight, bias, weight, bias, backend="triton"),
                linear_cross_entropy(x, weight, pairs[..., 0], reduction="none", backend="triton"),
                layer_norm(x, bias, bias, backend="triton"),
                pair_embed(weight, weight, pairs, bias, backend="triton"),
            )
            sum(out.sum() for out in outs).backward()
    assert len(asked) % 2 == 0
    assert asked[: len(asked) // 2] == asked[len(asked) // 2 :]
