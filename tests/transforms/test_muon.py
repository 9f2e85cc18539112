"""Muon against its equation, torch.optim.Muon and torch.optim.AdamW."""

import copy
import warnings

import pytest
import torch
from torch import nn

from grokfast import EMA, GrokFast
from grokfast.optim import Muon as Face
from grokfast.transforms import Layout
from grokfast.transforms.flat import FlatOptimizer
from grokfast.transforms.muon import Muon, newton_schulz
from tests.training.own_updates import BASE, STEPS, Network, check

SHAPES = {"w": (12, 5), "u": (5, 12), "b": (7,), "v": (5, 12), "wide": (3, 40), "s": ()}
LAYOUT = Layout.of(SHAPES)


def orthogonalized(m, steps=5):
    """Torch's, an operation at a time, in m's precision."""
    x = m.T if m.shape[0] > m.shape[1] else m
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x.T if m.shape[0] > m.shape[1] else x


def by_hand(experiment):
    o, network = experiment.optimizer, Network(experiment)
    weights = {name: w.clone() for name, w in network.start.items()}
    kept = {name: (torch.zeros_like(w), torch.zeros_like(w)) for name, w in weights.items()}
    for step in range(STEPS):
        lr = o.lr * (min(1, step / o.warmup) if o.warmup else 1)
        for name, g in network.gradients(weights).items():
            w, (m, v) = weights[name], kept[name]
            if w.ndim == 2:
                w *= 1 - lr * o.weight_decay
                m += (1 - o.momentum) * (g - m)
                u = g + o.momentum * (m - g) if o.nesterov else m
                w -= lr * max(1, w.shape[0] / w.shape[1]) ** 0.5 * orthogonalized(u)
            else:
                own, (beta1, beta2) = lr * o.adamw_scale, o.betas
                w *= 1 - own * o.weight_decay
                m += (1 - beta1) * (g - m)
                v += (1 - beta2) * (g * g - v)
                root = (v / (1 - beta2 ** (step + 1))).sqrt() + o.eps
                w -= own * m / (1 - beta1 ** (step + 1)) / root
    return weights


@pytest.mark.parametrize("nesterov", [True, False])
def test_fifty_steps_are_those_of_the_equation(nesterov):
    base = BASE.override({"optimizer": "muon", "optimizer.lr": 0.02, "optimizer.nesterov": nesterov})
    check(
        [
            base,
            base.override({"optimizer.momentum": 0.8, "optimizer.weight_decay": 0.0, "seed": 1}),
            base.override({"optimizer.lr": 5e-3, "optimizer.adamw_scale": 0.3, "optimizer.betas": (0.8, 0.9)}),
        ],
        by_hand,
    )


def test_a_warm_up_is_of_both_rates():
    check([BASE.override({"optimizer": "muon", "optimizer.lr": 0.02, "optimizer.warmup": 20})], by_hand)


@pytest.mark.parametrize("shape", [(16, 16), (12, 40), (40, 12), (3, 3, 100), (5, 1)])
def test_orthogonalising_is_exact_to_its_precision(shape):
    x = torch.randn(2, *shape, dtype=torch.float64).flatten(0, -3)
    x[..., -1:, :] *= 1e-4  # a direction that hardly counts
    expected = torch.stack([orthogonalized(m) for m in x])
    torch.testing.assert_close(newton_schulz(x), expected, rtol=1e-9, atol=1e-11)
    size = expected.norm()
    single = torch.stack([orthogonalized(m) for m in x.float()])
    error, torchs = ((found.double() - expected).norm() / size for found in (newton_schulz(x.float()), single))
    assert error <= max(2 * torchs, 2e-6)
    half = newton_schulz(x.float(), precision="bfloat16")
    assert half.dtype is torch.float32
    from torch.optim._muon import _zeropower_via_newtonschulz as zeropower

    torchs = torch.stack([zeropower(m.float(), (3.4445, -4.775, 2.0315), 5, 1e-7).float() for m in x])
    assert (half - expected).norm() <= 2 * (torchs - expected).norm()
    assert not newton_schulz(torch.zeros(1, 4, 3)).any()


def gradients(seed):
    g = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=g) for name, shape in SHAPES.items()}


def by_torch(steps=6, adjust=None, dtype=torch.float32):
    """torch's Muon on the matrices, torch's AdamW on the rest."""
    params = {name: nn.Parameter(p.to(dtype)) for name, p in gradients(0).items()}
    matrices = [p for p in params.values() if p.ndim == 2]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.3, momentum=0.9, adjust_lr_fn=adjust)
    adamw = torch.optim.AdamW([p for p in params.values() if p.ndim < 2], lr=0.02, weight_decay=0.3)
    for step in range(steps):
        for name, grad in gradients(1 + step).items():
            params[name].grad = grad.to(dtype)
        muon.step()
        adamw.step()
    return {name: p.detach() for name, p in params.items()}


@pytest.mark.parametrize("adjust", ["original", "match_rms_adamw"])
def test_in_bfloat16_it_is_torchs(adjust):
    expected = by_torch(adjust=adjust)
    common = {"lr": 0.02, "weight_decay": 0.3, "momentum": 0.9, "adjust_lr_fn": adjust, "ns_precision": "bfloat16"}
    flat = torch.cat([p.flatten() for p in gradients(0).values()])[None].repeat(2, 1)
    optimizer = FlatOptimizer(flat, [Muon(**common)] * 2, [None] * 2, LAYOUT)
    params = {name: nn.Parameter(p) for name, p in gradients(0).items()}
    face = Face(params.values(), **common)
    for step in range(6):
        grads = gradients(1 + step)
        optimizer.step(flat, torch.cat([g.flatten() for g in grads.values()])[None].repeat(2, 1))
        for name, grad in grads.items():
            params[name].grad = grad
        face.step()
    scale = by_torch(adjust=adjust)["w"].sub(gradients(0)["w"]).norm()
    for name, own in LAYOUT.views(flat).items():
        for found in (*own, params[name].detach()):
            assert (found - expected[name]).norm() <= 2e-2 * scale, name  # bfloat16's own, 6 times
        assert torch.equal(own[0], own[1])


def test_the_face_is_the_ensembles_update():
    common = {"lr": 0.02, "weight_decay": 0.3}
    flat = torch.cat([p.flatten() for p in gradients(0).values()])[None].double()
    optimizer = FlatOptimizer(flat, [Muon(**common)], [None], LAYOUT)
    params = {name: nn.Parameter(p.double()) for name, p in gradients(0).items()}
    face = Face(params.values(), **common)
    for step in range(6):
        if step == 3:  # taken up elsewhere
            params = {name: nn.Parameter(p.detach().clone()) for name, p in params.items()}
            saved, face = copy.deepcopy(face.state_dict()), Face(params.values(), **common)
            face.load_state_dict(saved)
        grads = gradients(1 + step)
        optimizer.step(flat, torch.cat([g.flatten() for g in grads.values()])[None].double())
        for name, grad in grads.items():
            params[name].grad = grad.double()
        face.step()
    for name, own in LAYOUT.views(flat).items():
        torch.testing.assert_close(own[0], params[name].detach())


def test_a_filter_comes_before_it():
    """In an ensemble and in a script: EMA first, then Muon."""
    flat = torch.cat([p.flatten() for p in gradients(0).values()])[None].double()
    optimizer = FlatOptimizer(flat, [Muon(lr=0.02)], [EMA(0.9, 2.0)], LAYOUT)
    params = {name: nn.Parameter(p.double()) for name, p in gradients(0).items()}
    wrapped = GrokFast(Face(params.values(), lr=0.02, weight_decay=0), EMA(0.9, 2.0))
    for step in range(6):
        grads = gradients(1 + step)
        optimizer.step(flat, torch.cat([g.flatten() for g in grads.values()])[None].double())
        for name, grad in grads.items():
            params[name].grad = grad.double()
        wrapped.step()
    for name, own in LAYOUT.views(flat).items():
        torch.testing.assert_close(own[0], params[name].detach())


def test_vectors_take_adamw_and_that_is_said_once():
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        layout = Layout.of({"w": (3, 3), "vector_of_this_test": (4,)})
        for _ in range(2):
            FlatOptimizer(torch.zeros(1, 13), [Muon()], [None], layout)
    assert [str(w.message) for w in said] == ["Muon passes by vector_of_this_test, no matrices: they take AdamW's step"]
    with pytest.warns(UserWarning, match="passes by 1 parameters"):
        Face([nn.Parameter(torch.zeros(3))])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Face([nn.Parameter(torch.zeros(3, 3))])
        Face([{"params": [nn.Parameter(torch.zeros(3))], "adamw": True}])


def test_only_some_matrices_and_only_some_decay():
    flat = torch.randn(1, LAYOUT.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    some, all_, start = flat.clone(), flat.clone(), flat.clone()
    grad = torch.randn(1, LAYOUT.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    options = {"lr": 0.1, "weight_decay": 0.5, "orthogonalized": "u,wide"}
    FlatOptimizer(some, [Muon(**options, decayed="u,b")], [None], LAYOUT).step(some, grad.clone())
    FlatOptimizer(all_, [Muon(**options, decayed="all")], [None], LAYOUT).step(all_, grad.clone())
    for name, start_of in LAYOUT.views(start).items():
        difference = LAYOUT.views(some)[name] - LAYOUT.views(all_)[name]
        torch.testing.assert_close(difference, 0 * start_of if name in ("u", "b") else 0.05 * start_of)
    adamw = {"w", "v", "b", "s"}  # a first step of AdamW has the size lr
    for name, start_of in LAYOUT.views(start).items():
        moved = (LAYOUT.views(all_)[name] - 0.95 * start_of).abs() / 0.1
        assert (name in adamw) == torch.allclose(moved, torch.ones_like(moved), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"momentum": 1.0}, "momentum"),
        ({"ns_steps": 0}, "ns_steps"),
        ({"ns_precision": "half"}, "ns_precision"),
        ({"adjust_lr_fn": "none"}, "adjust_lr_fn"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"nesterov": 1}, "nesterov"),
    ],
)
def test_bad_values_are_named(options, said):
    with pytest.raises((TypeError, ValueError), match=rf"optimizer\.{said}"):
        Muon(**options)
    with pytest.raises((TypeError, ValueError), match=said):
        Face([nn.Parameter(torch.zeros(2, 2))], **options)


def test_parameters_that_it_does_not_take_are_named():
    with pytest.raises(ValueError, match=r"optimizer.orthogonalized must be .* got 'body'"):
        FlatOptimizer(torch.zeros(1, LAYOUT.size), [Muon(orthogonalized="body")], [None], LAYOUT)
    with pytest.raises(TypeError, match="complex64"):
        Face([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))])
    p = nn.Parameter(torch.zeros(2, 2))
    p.grad = torch.zeros(2, 2).to_sparse()
    with pytest.raises(TypeError, match="dense"):
        Face([p]).step()
