"""Projections, penalties, averages and clips in the one pass: as their operations, the same bits on any threads."""

import copy

import pytest
import torch
from torch.optim import SGD, Adam, AdamW

from grokfast import (
    EMA,
    L1,
    MA,
    Compression,
    GrokAdamW,
    GrokFast,
    MultiEMA,
    NormClamp,
    NormClip,
    OrthoGrad,
    Spherical,
    backend,
)
from grokfast.optim import Lion
from grokfast.optim.fused import step as one_pass
from grokfast.transforms import Chain
from tests.optim.by_hand import bits, same

SHAPES = [(64, 63), (63,), (1,), (), (3, 5, 7), (1, 40000), (300, 130), (0, 4)]
CLIP = NormClip(0.9, parameters="matrices")
CHAINS = {
    "projection": OrthoGrad(),
    "clip": CLIP,
    "projection, EMA": Chain(OrthoGrad(0.7), EMA(0.9, 2.0)),
    "EMA, clip": Chain(EMA(0.9, 2.0), CLIP),
    "projection, MA, clip": Chain(OrthoGrad(), MA(3, 2.0), CLIP),
    "projection, clip": Chain(OrthoGrad(0.5, parameters="matrices"), CLIP),
    "l1": L1(0.3),
    "l2": Compression(0.2, parameters="all"),
    "projection, l1, l2, EMA": Chain(OrthoGrad(), L1(0.1), Compression(0.1), EMA(0.9, 2.0)),
    "l1, MA": Chain(L1(0.1, parameters="all"), MA(3, 2.0)),
    "averages": MultiEMA((0.5, 0.9, 0.99), (1.0, 0.0, 3.0)),
    "projection, average, clip": Chain(OrthoGrad(), GrokAdamW(), CLIP),
    "spheres of rows": Spherical(0.5),
    "spheres": Chain(EMA(0.9, 2.0), Spherical(0.5, over="tensors", parameters="all")),
    "held": NormClamp(3.0),
    "clamped": Chain(L1(0.1), NormClamp(15.0, hold=False, parameters="matrices")),
    "late": Chain(OrthoGrad(start=2), MultiEMA(start=4)),
}
INNER = {
    "AdamW": (AdamW, {"lr": 1e-2, "weight_decay": 0.5}),
    "Adam": (Adam, {"lr": 1e-2, "weight_decay": 0.1}),
    "SGD": (SGD, {"lr": 0.1, "momentum": 0.9}),
    "SGD, plain": (SGD, {"lr": 0.1, "maximize": True}),
    "Lion": (Lion, {"lr": 1e-3}),
}
needs_extension = pytest.mark.skipif(backend.extension() is None, reason="needs grokfast._C")


def parameters(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter((0.1 * torch.randn(s, generator=generator)).to(dtype)) for s in SHAPES]


def gradients(step, params):
    generator = torch.Generator().manual_seed(1 + step)
    found = [torch.randn(s, generator=generator).to(params[0].dtype) for s in SHAPES]
    found[0] += 3 * torch.randn(SHAPES[0], generator=torch.Generator().manual_seed(99)).to(params[0].dtype)
    return found


def trained(chain, inner, dtype=torch.float32, engine="auto", steps=6, first=0, optimizer=None):
    kind, options = INNER[inner]
    with backend.using(engine):
        if optimizer is None:
            optimizer = GrokFast(kind(parameters(dtype), **options), CHAINS[chain])
        params = optimizer.param_groups[0]["params"]
        for step in range(first, steps):
            for p, grad in zip(params, gradients(step, params)):
                p.grad = grad
            optimizer.step()
    return optimizer


@pytest.fixture
def passes(monkeypatch):
    """How many steps were taken in the one pass."""
    found = []

    def step(*args, **options):
        found.append(one_pass(*args, **options))
        return found[-1]

    monkeypatch.setattr("grokfast.optim.fused.step", step)
    return found


def judged(optimizer):
    """The parameters; single numbers together, as torch has one or the other exactly, by luck."""
    params = [p.detach().double() for p in optimizer.param_groups[0]["params"]]
    return [p for p in params if p.numel() != 1] + [torch.cat([p.flatten() for p in params if p.numel() == 1])]


@needs_extension
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("chain", CHAINS)
def test_it_is_as_exact_as_operations(chain, inner, passes):
    ours = trained(chain, inner)
    assert passes == ([False] * 4 + [True] * 2 if chain == "late" else [True] * 6)
    torchs = trained(chain, inner, engine="reference")
    exact = trained(chain, inner, torch.float64)
    assert passes[6:] == [False] * 12
    for p, q, e in zip(*map(judged, (ours, torchs, exact))):
        if p.numel():
            allowed = 2 * (q - e).abs().max() + 2 * torch.finfo(torch.float32).eps * e.abs().max()
            if inner == "Lion":  # a sign turns where a gradient is all but zero
                assert ((p - e).abs() > allowed).float().mean() < 1e-3
            else:
                assert (p - e).abs().max() <= allowed


@needs_extension
@pytest.mark.parametrize("chain", CHAINS)
def test_it_is_the_same_bits_on_any_number_of_threads(chain):
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            found.append(bits(trained(chain, "AdamW", steps=4)))
    finally:
        torch.set_num_threads(before)
    assert all(same(found[0], other) for other in found[1:])


@needs_extension
@pytest.mark.parametrize("chain", CHAINS)
def test_it_goes_on_where_operations_left_off_and_back(chain):
    whole = trained(chain, "AdamW")
    half = trained(chain, "AdamW", steps=3)
    operations = trained(chain, "AdamW", engine="reference", first=3, optimizer=copy.deepcopy(half))
    for p, q in zip(whole.param_groups[0]["params"], operations.param_groups[0]["params"]):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    assert {key: t.shape for key, t in whole.state[whole.param_groups[0]["params"][0]].items()} == {
        key: t.shape for key, t in operations.state[operations.param_groups[0]["params"][0]].items()
    }
    resumed = GrokFast(AdamW(copy.deepcopy(half.param_groups[0]["params"]), **INNER["AdamW"][1]), CHAINS[chain])
    resumed.load_state_dict(half.state_dict())
    assert same(bits(trained(chain, "AdamW", first=3, optimizer=resumed)), bits(whole))


@needs_extension
def test_no_row_is_longer_and_a_gradient_along_the_weights_leaves_no_trace(passes):
    optimizer = trained("projection, MA, clip", "AdamW")
    for p in optimizer.param_groups[0]["params"]:
        if p.ndim > 1:
            assert (p.detach().flatten(0, -2).norm(dim=1) <= 0.9 * (1 + 1e-6)).all()
    p = torch.nn.Parameter(torch.randn(40, 50))
    optimizer = GrokFast(SGD([p], lr=0.1), OrthoGrad())
    p.grad = torch.randn(40, 50) + 2 * p.detach()
    length, w = p.grad.norm(), p.detach().clone()
    optimizer.step()
    moved = (w - p.detach()) / 0.1
    torch.testing.assert_close(moved.norm(), length, rtol=1e-4, atol=0)
    assert (moved * w).sum().abs() < 1e-3 * length * w.norm()


@needs_extension
def test_what_is_not_finite_stays_so():
    for bad in (float("nan"), float("inf")):
        found = []
        for engine in ("auto", "reference"):
            optimizer = trained("projection, clip", "AdamW", engine=engine, steps=1)
            p = optimizer.param_groups[0]["params"][0]
            p.grad[3, 4] = bad
            with backend.using(engine):
                optimizer.step()
            found.append(p.detach().isfinite())
        assert torch.equal(*found)


@needs_extension
def test_a_matrix_in_another_order_and_groups_with_other_chains_are_left_to_operations(passes):
    p = torch.nn.Parameter(torch.randn(5, 4).t())
    q, r = (torch.nn.Parameter(torch.randn(5, 4)) for _ in range(2))
    for optimizer in (
        GrokFast(AdamW([p]), CHAINS["EMA, clip"]),
        GrokFast(AdamW([{"params": [q]}, {"params": [r], "filter": EMA()}]), CHAINS["EMA, clip"]),
    ):
        for group in optimizer.param_groups:
            for one in group["params"]:
                one.grad = torch.randn_like(one)
        optimizer.step()
    assert passes == [False, False]


@needs_extension
def test_an_average_goes_by_the_losses_that_it_is_told(passes):
    found = []
    for engine in ("auto", "reference"):
        optimizer = None
        for first, losses in ((0, (1.0, 1.0)), (3, (0.1, 2.0)), (6, (0.2, 0.1))):
            if optimizer is not None:
                optimizer.observe(*losses)
            optimizer = trained(
                "projection, average, clip", "AdamW", engine=engine, first=first, steps=first + 3, optimizer=optimizer
            )
        found.append(optimizer.param_groups[0]["params"])
    assert passes == [True] * 9 + [False] * 9
    for p, q in zip(*found):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)
    never_told = trained("projection, average, clip", "AdamW", steps=9)
    assert (never_told.param_groups[0]["params"][0] - found[0][0]).abs().max() > 1e-4


@needs_extension
def test_all_weights_together_have_the_length_that_is_held():
    for chain, length in (("held", 3.0), ("clamped", 15.0)):
        params = trained(chain, "AdamW").param_groups[0]["params"]
        own = [p for p in params if chain == "held" or p.ndim > 1]
        assert torch.cat([p.detach().flatten() for p in own]).double().norm() == pytest.approx(length, rel=1e-6)
