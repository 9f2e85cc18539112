"""What the fused step of a transformer does at sizes where sums have several chunks, and products several blocks."""

import os
from dataclasses import replace

import pytest
import torch

from grokfast import Experiment
from grokfast.backend import using
from grokfast.models import GrokTransformer, TransformerConfig
from grokfast.models.transformer.fused import layout
from grokfast.models.transformer.fused.layout import Level
from grokfast.models.transformer.planned_step import TransformerStep
from grokfast.ops.dispatch import PRECISIONS
from tests.tf32 import torch_at

pytest.importorskip("triton")
from benchmarks.prediction.shipped import fused as shipped

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TINY = TransformerConfig(d_model=6, n_heads=2, d_mlp=10)


def problem(config, n_models, n_rows=24, n_tokens=5, n_answers=5):
    """All different rows of two tokens, and a model."""
    tokens = torch.cartesian_prod(torch.arange(n_tokens), torch.arange(n_tokens))
    g = torch.Generator().manual_seed(0)
    tokens = torch.stack([tokens[torch.randperm(len(tokens), generator=g)[:n_rows]] for _ in range(n_models)])
    model = GrokTransformer(config, n_tokens=n_tokens, n_answers=n_answers, seq_len=2, seeds=range(n_models))
    targets = torch.randint(n_answers, tokens.shape[:2], generator=g)
    return model.to(DEVICE), tokens.to(DEVICE), targets.to(DEVICE)


def gradient(model, tokens, targets, **options):
    step = TransformerStep(model, tokens, targets, backend="triton", **options)
    flat = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    grad, loss, correct = (torch.full_like(t, torch.nan) for t in (flat, flat[:, 0], flat[:, 0]))
    with using("triton"):
        assert step.why_not_fused(flat) == ""
        step.gradient(flat, grad, loss, correct)
    return loss, correct, grad


def by_torch(model, tokens, targets, dtype):
    model = GrokTransformer.to(model, dtype)
    logits = model(tokens)
    rows = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = rows.view(targets.shape).mean(1)
    grads = torch.autograd.grad(losses.sum(), list(model.parameters()))
    correct = (logits.argmax(-1) == targets).sum(1).to(dtype)
    return losses.detach(), correct, torch.cat([g.flatten(1) for g in grads], 1)


def agrees(model, data, judge, **options):
    got = gradient(model, *data, **options)
    with torch_at(options.get("precision", "ieee")):
        single = by_torch(model, *data, torch.float32)
    for ours, theirs, exact in zip(got, single, by_torch(model, *data, torch.float64), strict=True):
        judge(ours, theirs, exact)


@pytest.mark.parametrize("changes", [{}, {"tied": True, "mlp_bias": False}], ids=str)
def test_chunks_of_rows_have_one_sum_however_they_are_shared(changes, judge, poisoned, monkeypatch):
    monkeypatch.setattr(layout, "LEAST_ROWS", 8)
    model, *data = problem(replace(TINY, **changes), 2)
    results = []
    for processors in (1, 132):  # a program for all chunks, or for each
        monkeypatch.setattr(layout, "PROCESSORS", processors)
        results.append(gradient(model, *data))
        assert layout.n_splits(layout.n_chunks(24), 5, 2) == (3 if processors > 1 else 1)
    assert all(torch.equal(one, many) for one, many in zip(*results))
    agrees(model, data, judge)


def test_a_model_has_the_bits_it_has_alone_whatever_splits_there_are(poisoned, monkeypatch):
    monkeypatch.setattr(layout, "LEAST_ROWS", 8)
    monkeypatch.setattr(layout, "PROCESSORS", 2)
    model, tokens, targets = problem(TINY, 2)
    tokens, targets = (t[:1].expand(2, *t.shape[1:]).contiguous() for t in (tokens, targets))
    tiles = 5  # of the five matrices one each
    assert layout.n_splits(3, tiles, 1) > layout.n_splits(3, tiles, 2) == 1
    alone, *_ = problem(TINY, 1)
    for one, two in zip(gradient(alone, tokens[:1], targets[:1]), gradient(model, tokens, targets)):
        assert torch.equal(one[0], two[0])


@pytest.mark.parametrize(
    "changes", [{}, {"norm": "post", "n_layers": 2}, {"norm": "pre", "n_layers": 2, "tied": True}], ids=str
)
def test_tiles_of_any_height_give_the_same_bits(changes, judge, poisoned, monkeypatch, products_of_any_shape_alike):
    """Rows that fill no tile."""
    monkeypatch.setattr(layout, "HEIGHTS", (16, 32))
    model, *data = problem(replace(TINY, **changes), 1, n_rows=37, n_tokens=7)
    results = []
    for height in (16, 32):
        monkeypatch.setattr(layout, "height", lambda *_, height=height: height)
        results.append(gradient(model, *data, precision="tf32"))
    assert all(torch.equal(low, other) for other_ones in results[1:] for low, other in zip(results[0], other_ones))
    agrees(model, data, judge, precision="tf32")


def test_what_is_left_of_an_ensemble_has_other_tiles_and_the_same_bits(
    poisoned, monkeypatch, products_of_any_shape_alike
):
    monkeypatch.setattr(layout, "HEIGHTS", (16, 32))
    monkeypatch.setattr(layout, "READERS", 4)
    assert [layout.height("bf16", 6, 37, models) for models in (2, 1)] == [32, 16]
    model, tokens, targets = problem(replace(TINY, norm="replace"), 2, n_rows=37, n_tokens=7)
    step = TransformerStep(model, tokens, targets, precision="bf16", backend="triton")
    flat = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    grad = torch.full_like(flat, torch.nan)
    kept = grad[1:].clone()
    with using("triton"):
        step.gradient(flat, grad, flat.new_empty(2), flat.new_empty(2))
        step.keep([1]).gradient(flat[1:], kept, flat.new_empty(1), flat.new_empty(1))
    assert torch.equal(kept, grad[1:])


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="as compiled only, which tests/ptx/test_kernels.py does"
)
def test_the_heights_of_the_recipes_give_the_same_bits_alone_and_among_others(poisoned, monkeypatch):
    """At nanda's sizes, with LayerNorm, whose sums are those that lie over several threads."""
    config = TransformerConfig(norm="post")
    model, *data = problem(config, 2, n_rows=75, n_tokens=9)
    alone, *_ = problem(config, 1, n_tokens=9)
    own = [t[:1].contiguous() for t in data]
    expected = None
    for height in layout.HEIGHTS:
        monkeypatch.setattr(layout, "height", lambda *_, height=height: height)
        for got in (gradient(alone, *own, precision="tf32"), gradient(model, *data, precision="tf32")):
            expected = got if expected is None else expected
            assert all(torch.equal(one[0], other[0]) for one, other in zip(expected, got))


def test_tiles_are_as_tall_as_keeps_the_processors_or_the_cache_at_work():
    def heights(precision, d=128, rows=3830):
        return [layout.height(precision, d, rows, n) for n in (1, 2, 1024)]

    assert heights("tf32", rows=500) == [32, 32, 64]  # 16 tiles, 32: each processor reads for itself
    assert heights("tf32") == heights("bf16") == [64, 64, 64]  # 60: more would wait for the cache
    assert heights("ieee") == [32, 64, 64]  # 120, 120: all 132 processors multiply
    assert heights("tf32x3") == [64, 64, 64]  # 32 rows are too few for four warps
    assert heights("tf32", d=512) == [64, 64, 64]


@pytest.mark.parametrize("height", [16, 32, 64])
def test_rows_are_summed_in_blocks_that_no_height_from_32_on_changes(height):
    tile, low = (layout.tiles("rows", "tf32", TransformerConfig(), 113, rows) for rows in (height, 32))
    assert tile["BM"] == height
    for name in ("BR", "BL", "BA"):
        assert tile[name] == min(low[name], height)
        assert height % tile[name] == 0


def test_a_gradient_that_is_no_row_of_adjacent_numbers_is_written_too(poisoned):
    model, tokens, targets = problem(TINY, 1, n_rows=6)
    expected = gradient(model, tokens, targets)
    flat = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    wide, loss, correct = flat.new_full((1, 2 * flat.shape[1]), torch.nan), flat.new_empty(1), flat.new_empty(1)
    with using("triton"):
        TransformerStep(model, tokens, targets).gradient(flat.requires_grad_(), wide[:, ::2], loss, correct)
    torch.testing.assert_close(wide[:, ::2], expected[2])
    assert wide[:, 1::2].isnan().all()


@pytest.mark.parametrize("precision", ["ieee", "tf32"])
def test_several_blocks_of_columns_and_classes(precision, judge, poisoned, monkeypatch):
    """A matrix wider than a tile, and classes that do not fit into one."""

    def narrow(kernel, *args, **kwargs):
        tile = whole(kernel, *args, **kwargs)
        return (
            tile
            | {name: 16 for name in ("BN", "BV", "BO", "BU") if tile.get(name)}
            | {n: b for n, b in {"BR": 8, "BA": 4}.items() if n in tile}
        )

    whole = layout.tiles
    monkeypatch.setattr(layout, "tiles", narrow)
    monkeypatch.setattr(layout, "HEIGHTS", (16, 32))
    config = replace(TINY, d_model=20, n_heads=4, d_mlp=37, norm="pre", n_layers=2, activation="gelu")
    model, *data = problem(config, 1, n_rows=19, n_answers=20)
    agrees(model, data, judge, precision=precision)


@pytest.mark.parametrize("is_wide", [False, True])  # wide ones: the MLP's products one after the other
@pytest.mark.parametrize("changes", [{}, {"norm": "post", "n_layers": 2}, {"norm": "pre", "tied": True}], ids=str)
def test_weights_are_transposed_for_the_way_back(changes, is_wide, judge, poisoned, monkeypatch):
    whole, config = layout.tiles, replace(TINY, d_model=16, d_mlp=96, **changes)
    if is_wide:
        monkeypatch.setattr(
            layout, "tiles", lambda name, *args: whole(name, *args) | ({"BU": 0} if name == "rows" else {})
        )
    assert layout.transposes("tf32", config)
    model, *data = problem(config, 2, n_rows=19)
    agrees(model, data, judge, precision="tf32")


@pytest.mark.parametrize("norm", ["none", "pre", "post", "replace"])
def test_numbers_of_a_row_do_not_overlap(norm):
    config = replace(TINY, norm=norm, n_layers=2, d_model=16)
    for i in range(3):
        level = Level.of(config, i, 7, 3 if i else 0)
        starts = sorted(set(level.places.values()))
        assert starts[0] == 0
        assert all(start % 16 == 0 for start in [*starts, level.stride])
        widths = {"STATS": 4, "Z": 10, "OF_Z": 10, "QKV": 48, "OF_QKV": 64, "WEIGHTS": 12}
        for name, start in level.places.items():
            end = min([s for s in starts if s > start], default=level.stride)
            assert end - start >= widths.get(name, 16)


@pytest.mark.parametrize("has_hidden", [False, True])
@pytest.mark.parametrize("norm", ["none", "pre", "post", "replace"])
def test_an_evaluation_overwrites_only_what_is_read_no_more(norm, has_hidden):
    config = replace(TINY, norm=norm, n_layers=2, d_model=16, d_mlp=80)
    for i in range(3):
        level = Level.of_evaluation(config, i, 7, 3 if i else 0, has_hidden=has_hidden)
        at = level.places
        assert all(start % 16 == 0 for start in [*at.values(), level.stride])
        assert ("Z" in at) == (has_hidden and i > 0)
        assert ("QKV" in at) == (i < 2)
        width = dict.fromkeys(at, 16) | {"Z": 80, "QKV": 48}

        def apart(a, b, at=at, width=width):
            return at[a] + width[a] <= at[b] or at[b] + width[b] <= at[a]

        together = [("INNER", "QKV"), ("X", "QKV")] if i < 2 else []
        if i:  # in, out and what is added, of one phase after the other
            together += [("HEADS", "Y"), ("MLP_IN", "X"), ("MLP_IN" if norm == "post" else "Y", "X")]
            together += [("Z", "MLP_IN"), ("Z", "X")] if has_hidden else []
            together += [("Z", "Y")] if has_hidden and norm != "post" else []
            together += [("Y", "MLP_IN"), ("X", "INNER")] if norm != "none" else []
        assert [pair for pair in together if not apart(*pair)] == []
        assert max(at[name] + width[name] for name in at if name != "IN_TURN") <= level.stride


@pytest.mark.parametrize("preset", ["nanda", "power", "grokfast"])
def test_kernels_of_a_preset_are_checked_for_spills_at_every_precision(preset):
    """As they are launched: the sizes are compiled in."""
    experiment = Experiment.preset(preset)
    data = experiment.task.build()
    (checked,) = (model for model in shipped.MODELS if model[0] == preset)
    config = replace(TransformerConfig(**checked[1]), init=experiment.model.init)  # which is no kernel's business
    assert config == experiment.model
    assert checked[2:6] == (data.n_tokens, data.n_answers, data.seq_len, experiment.loss.op)
    assert checked[6] == PRECISIONS


@pytest.mark.parametrize(("d", "last", "way_back"), [(128, 1, 1), (512, 3, 2)])
def test_wide_models_go_through_fewer_phases_in_a_launch(d, last, way_back):
    for phases, n in ((layout.LAST, last), (layout.WAY_BACK, way_back)):
        launches = layout.launches(d, *phases)
        assert len(launches) == n
        assert [flag for does in launches for flag in does] == [flag for flags in phases for flag in flags]


def test_every_chunk_is_whole_tiles_and_all_rows_are_in_one():
    for n in (1, 100, 227, 3830, 100_000):
        chunks = layout.n_chunks(n)
        per_chunk = layout.rows_per_chunk(n, chunks, 16)
        assert per_chunk % 16 == 0
        assert chunks * per_chunk >= n


def test_what_it_does_not_take_is_said_and_goes_another_way():
    model, tokens, targets = problem(TINY, 1, n_rows=6)
    flat = torch.cat([p.detach().flatten(1) for p in model.parameters()], 1)
    assert "no Triton" in TransformerStep(model, tokens, targets).why_not_fused(flat)
    with using("triton"):
        equal = TransformerStep(model, tokens[:, :1].expand(1, 6, 2).contiguous(), targets)
        assert "equal" in equal.why_not_fused(flat)
        step = TransformerStep(model, tokens, targets)
        assert step.why_not_fused(flat) == ""
        assert "float64" in step.why_not_fused(flat.double())
        assert "adjacent" in step.why_not_fused(flat.repeat_interleave(2, 1)[:, ::2])
