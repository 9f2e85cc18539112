import importlib
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from benchmarks.prediction.transformer import cost
from benchmarks.prediction.transformer_rows import distinct
from grokfast import Experiment, backend
from grokfast.models import GrokTransformer
from grokfast.models.transformer.fused import layout
from grokfast.models.transformer.fused.layout import Level
from grokfast.models.transformer.planned_step import TransformerStep

pytest.importorskip("triton")
MODULES = (
    "models.transformer.fused.launches",
    "ops.batch.kernels",
    "ops.gathered_attention.kernels",
    "ops.read_rows.kernels",
)
# Without a kernel; `to` keeps type and device here.
FREE = {
    "_unsafe_view", "alias", "as_strided", "detach", "empty", "empty_like", "empty_strided", "expand", "mT",
    "new_empty", "new_empty_strided", "permute", "select", "slice", "split", "split_with_sizes", "squeeze", "t", "to",
    "transpose", "unbind", "unsqueeze", "view",
}  # fmt: skip


class Launches(TorchDispatchMode):
    """Counts kernels, torch's own included, and runs none of Triton's."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.names, self.programs = [], Counter()
        for name in MODULES:
            module = importlib.import_module(f"grokfast.{name}")
            monkeypatch.setattr(module, "launch", self.launch)

    def launch(self, kernel, grid, *arguments, **constants):
        self.names.append(kernel.fn.__name__)
        self.programs[self.names[-1], math.prod(grid)] += 1
        if self.names[-1] == "choose_kernel":  # whose rows torch looks up
            with _disable_current_modes():
                arguments[2].zero_()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and name not in FREE:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def preset_step(name, n_models, p=None, precision="tf32", **changes):
    experiment = Experiment.preset(name)
    task = experiment.task if p is None else replace(experiment.task, p=p)
    data, config = task.build(), replace(experiment.model, **changes)
    sizes = {"n_tokens": data.n_tokens, "n_answers": data.n_answers, "seq_len": data.seq_len}
    model = GrokTransformer(config, **sizes, seeds=range(n_models))
    tokens, targets = (t.expand(n_models, *t.shape).contiguous() for t in (data.train.inputs, data.train.targets))
    return model, TransformerStep(model, tokens, targets, precision=precision, backend="triton")


@pytest.mark.parametrize("processors", [1, layout.PROCESSORS])  # 1: as if there were many models
@pytest.mark.parametrize("n_models", [1, 2])
@pytest.mark.parametrize(
    ("preset", "n_batch", "precision", "changes"),
    [
        ("nanda", None, "tf32", {}),
        ("nanda", None, "ieee", {}),
        ("power", 20, "bf16", {}),
        ("grokfast", 20, "tf32", {}),
        ("grokfast", None, "tf32x3", {"norm": "pre"}),
        ("power", 10, "tf32", {"tied": True}),  # too few rows for tables of tokens
    ],
)
def test_launches_are_counted_as_they_are(preset, n_batch, precision, changes, n_models, processors, monkeypatch):
    monkeypatch.setattr(layout, "PROCESSORS", processors)
    small = {"d_model": 16, "n_heads": 2, "d_mlp": 32}
    model, step = preset_step(preset, n_models, p=11, precision=precision, **small, **changes)
    flat = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    batch = None if n_batch is None else torch.zeros(n_models, n_batch, dtype=torch.int64)
    arguments = flat, torch.empty_like(flat), flat.new_empty(n_models), flat.new_empty(n_models), batch
    with backend.using("triton"):
        launches = Launches(monkeypatch)
        step.gradient(*arguments)  # what is made once
        launches.names.clear()
        launches.programs.clear()
        with launches:
            step.gradient(*arguments)
    with backend.using("reference"):  # it looks at shapes only
        counted = cost(step, n_batch)
    assert sum(one.count for one in counted) == len(launches.names), " ".join(launches.names)
    assert Counter((one.kernel, one.programs) for one in counted if one.kernel) == launches.programs


def test_a_step_is_a_handful_of_launches():
    assert sum(one.count for one in cost(preset_step("nanda", 1)[1])) == 7
    for name in ("power", "grokfast"):
        counted = cost(preset_step(name, 1)[1], 512)
        of_rows = [one.count for one in counted if one.name.split()[0] in ("enter", "rows", "sum", "weights", "finish")]
        assert sum(of_rows) == 11


def test_tall_tiles_read_fewer_weights(monkeypatch):
    _, step = preset_step("nanda", 1)
    counted = []
    for height in layout.HEIGHTS:
        monkeypatch.setattr(layout, "height", lambda *_, height=height: height)
        counted.append(cost(step))
    low, tall = counted
    assert sum(one.bytes for one in tall) < 0.9 * sum(one.bytes for one in low)
    assert sum(one.flops for one in tall) == sum(one.flops for one in low)


def test_the_counts_of_the_recipes():
    """nanda: kernels.md's 3.75 GFLOP, nothing of which is made anew in the backward."""
    _, one = preset_step("nanda", 1)
    n, d, hidden, classes, table = 3830, 128, 512, 113, 227
    products = n * d * (2 * hidden + classes + d) + table * d * 3 * d
    got = cost(one)
    flops = sum(launch.flops for launch in got)
    assert flops == pytest.approx(2 * 3 * products, rel=0.02)
    assert flops == pytest.approx(3.75e9, rel=0.02)
    _, four = preset_step("nanda", 4)
    assert sum(launch.flops for launch in cost(four)) == 4 * flops
    assert sum(launch.bytes for launch in cost(four)) <= 4 * sum(launch.bytes for launch in got)
    exact, three_passes = (cost(preset_step("nanda", 1, precision=precision)[1]) for precision in ("ieee", "tf32x3"))
    assert sum(launch.flops for launch in exact) == flops
    assert sum(launch.flops for launch in three_passes) == 3 * flops


def test_all_scratch_is_touched_and_no_more():
    """What launches touch of a level's rows is what a row has, but for what lies between."""
    _, step = preset_step("grokfast", 1, norm="pre")
    sizes = {}
    for launch in cost(step):
        for phase in launch.phases:
            for use in phase:
                sizes[use.array] = max(use.size, sizes.get(use.array, 0))
    rows = step.plan.rows()
    levels = [Level.of(step.config, 0, rows.pairs.pairs.shape[1], 0)]
    levels += [Level.of(step.config, i, *layer.keys.shape[1:]) for i, layer in enumerate(rows.layers, 1)]
    for i, level in enumerate(levels):
        touched = sum(size for array, size in sizes.items() if array.startswith(f"level {i} "))
        assert 0.97 * 4 * level.n_rows * level.stride < touched <= 4 * level.n_rows * level.stride


def test_what_is_touched_is_asked_for():
    for precision in ("ieee", "tf32"):
        for launch in cost(preset_step("nanda", 1, precision=precision)[1]):
            for use in (use for phase in launch.phases for use in phase):
                assert use.loads or use.stores
                assert use.size > 0
                # An index, or an embedding, of which a launch reads some rows only.
                assert use.size <= use.asked or use.array in ("embedding", "positions")


@pytest.fixture
def moved(monkeypatch):
    """Bytes of different addresses that the interpreter's loads and stores have moved, in a list of one."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    if torch.cuda.is_available():
        pytest.skip("counts what Triton's interpreter does")
    total = [0]
    for name, place in (("create_masked_load", 1), ("create_masked_store", 2)):
        original = getattr(interpreter.InterpreterBuilder, name)

        def counting(builder, *arguments, original=original, place=place, **options):
            pointers, mask = arguments[0], arguments[place].data
            size = pointers.get_element_ty().primitive_bitwidth // 8
            total[0] += size * len(np.unique(pointers.data[np.broadcast_to(mask != 0, pointers.data.shape)]))
            return original(builder, *arguments, **options)

        monkeypatch.setattr(interpreter.InterpreterBuilder, name, counting)
    return total


@pytest.mark.parametrize("processors", [1, layout.PROCESSORS])
def test_bytes_are_those_that_the_kernels_move(processors, moved, monkeypatch):
    """Where no product is made in blocks that read something again."""
    monkeypatch.setattr(layout, "PROCESSORS", processors)
    model, step = preset_step("nanda", 1, p=17, d_model=16, n_heads=2, d_mlp=32)
    found = {}
    for name in MODULES:
        module = importlib.import_module(f"grokfast.{name}")

        def launch(kernel, grid, *arguments, original=module.launch, **constants):
            moved[0] = 0
            original(kernel, grid, *arguments, **constants)
            found.setdefault(kernel.fn.__name__, []).append(moved[0])

        monkeypatch.setattr(module, "launch", launch)
    flat = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    with backend.using("triton"):
        step.gradient(flat, torch.empty_like(flat), flat.new_empty(1), flat.new_empty(1))
    with backend.using("reference"):
        counted = cost(step)
    for one in counted:
        if one.kernel != "finish_kernel":  # which at these sizes mostly reads what it is to do
            assert one.bytes == pytest.approx(found[one.kernel].pop(0), rel=0.05), one.name


def test_different_entries_are_counted_tile_by_tile():
    index = torch.tensor([[3, 3], [-1, 4], [3, 5], [5, -1], [-1, -1]])
    assert [distinct(index, height) for height in (1, 2, 3, 5, 64)] == [5, 4, 4, 3, 3]
    assert distinct(index[:, 0], 2) == 3


def test_equal_rows_are_not_counted():
    model, _ = preset_step("nanda", 1)
    tokens = torch.zeros(1, 5, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match="rows are different"):
        cost(TransformerStep(model, tokens, tokens[..., 0]))
