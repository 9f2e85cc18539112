"""Projections, penalties and clips of an ensemble in the one pass: what their own operations do, model by model."""

from array import array

import pytest
import torch

from grokfast import EMA, L1, MA, Compression, NormClip, OrthoGrad, Spherical, backend
from grokfast.parts import find
from grokfast.schedules import Switch
from grokfast.schedules.program import Program
from grokfast.transforms import Chain, Layout, hypers
from grokfast.transforms.flat import FlatOptimizer
from grokfast.transforms.rows import hyper_row

LAYOUT = Layout.of({"w": (60, 700), "b": (70,), "scale": (1,), "out": (9, 3, 11)})
WIDTH, STEPS = LAYOUT.size + 9, 8
STRENGTHS = ((1.0, 0.9), (0.4, 2.0), (0.0, 50.0))
CHAINS = {
    "projection": [OrthoGrad(share) for share, _ in STRENGTHS],
    "clip": [NormClip(norm, "matrices") for _, norm in STRENGTHS],
    "projection, EMA": [Chain(OrthoGrad(share, "w, b"), EMA(0.5 + share / 4, 2.0)) for share, _ in STRENGTHS],
    "all": [Chain(OrthoGrad(share), EMA(0.9, 2.0), NormClip(norm, "out")) for share, norm in STRENGTHS],
    "penalties": [
        Chain(OrthoGrad(share), L1(share / 10), Compression(share / 20, "w"), EMA(0.9, 2.0)) for share, _ in STRENGTHS
    ],
    "spheres": [Chain(L1(share, "all"), Spherical(norm)) for share, norm in STRENGTHS],
    "late EMA": [Chain(OrthoGrad(share), EMA(0.9, 2.0, start=i)) for i, (share, _) in enumerate(STRENGTHS)],
    "MA, clip": [Chain(OrthoGrad(share), MA(3, 2.0), NormClip(norm, "matrices")) for share, norm in STRENGTHS],
}
OPTIMIZERS = {
    "adamw": [{"lr": 1e-2, "weight_decay": 0.5}, {"lr": 3e-2}, {"lr": 1e-2, "warmup": 3}],
    "sgd": [{"lr": 0.1, "momentum": 0.9}, {"lr": 0.05, "momentum": 0.5}, {"lr": 0.1, "momentum": 0.9}],
    "lion": [{"lr": 1e-3}, {"lr": 1e-3, "weight_decay": 0.5}, {"lr": 2e-3}],
}
needs_extension = pytest.mark.skipif(backend.extension() is None, reason="needs grokfast._C")


def rows(seed, models, dtype):
    t = 0.3 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(seed))
    t[:, LAYOUT.size :] = 0
    return t[list(models)].to(dtype)


def trained(chain, kind="adamw", dtype=torch.float32, engine="auto", models=(0, 1, 2), left_at=None, follow=()):
    """Weights after all steps; those after `left_at` without the first model."""
    filters = [CHAINS[chain][i] for i in models]
    configs = [find("optimizer", kind)(**OPTIMIZERS[kind][i]) for i in models]
    flat = rows(0, models, dtype)
    with backend.using(engine):
        optimizer = FlatOptimizer(flat, configs, filters, LAYOUT)
        if follow:
            current = [hypers.current(config, filter) for config, filter in zip(configs, filters)]
            optimizer.follow(Program([follow] * len(models), current, STEPS, hypers.same(filters[0])))
        for step in range(STEPS):
            if step == left_at:
                flat, models = flat[1:].clone(), models[1:]
                optimizer.keep(torch.arange(1, len(models) + 1))
            optimizer.step(flat, rows(1 + step, models, dtype))
    return flat


@needs_extension
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("chain", CHAINS)
def test_it_is_as_exact_as_operations(chain, kind):
    ours, torchs, exact = (
        trained(chain, kind, dtype, engine)
        for dtype, engine in ((torch.float32, "auto"), (torch.float32, "reference"), (torch.float64, "reference"))
    )
    assert not ours[:, LAYOUT.size :].any()
    for name, e in LAYOUT.views(exact).items():
        p, q = (LAYOUT.views(t)[name].double() for t in (ours, torchs))
        allowed = 2 * (q - e).abs().max() + 2 * torch.finfo(torch.float32).eps * e.abs().max()
        off = ((p - e).abs() > allowed).float().mean()
        assert off < 1e-3 if kind == "lion" else off == 0  # Lion's sign turns where a gradient is all but zero


@needs_extension
@pytest.mark.parametrize("chain", CHAINS)
def test_the_pass_takes_it_and_is_the_same_bits_on_any_number_of_threads_and_in_any_company(chain, monkeypatch):
    if chain != "MA, clip":  # a window's rows are whole models
        monkeypatch.setattr("grokfast.transforms.operations.Operation.apply", None)  # which nobody calls
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(trained(chain))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0], other) for other in found[1:])
    assert torch.equal(found[0][1], trained(chain, models=(1,))[0])
    assert torch.equal(found[0][1:], trained(chain, left_at=3))


@needs_extension
@pytest.mark.parametrize("change", [Switch(of="share", to=0.2, at=4), Switch(of="norm", to=0.1, at=4)])
def test_strengths_follow_a_schedule(change):
    chain = "all"
    ours, exact = trained(chain, follow=(change,)), trained(chain, dtype=torch.float64, follow=(change,))
    torch.testing.assert_close(ours.double(), exact, rtol=1e-3, atol=1e-4)
    assert (ours - trained(chain)).abs().max() > 1e-3  # ten times what is allowed above


@needs_extension
@pytest.mark.parametrize(
    ("rule", "row_wise", "why"),
    [
        (0, [0.0, 1.0], "row_wise must be a row of 6 for each entry"),
        (3, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0], "row_wise needs the weights"),
        (0, [0.0, 0.0, 0.0, 1.0, 7.0, 0.0], "row must divide its tensor"),
        (0, [0.0, 0.0, 0.0, 1.0, -2.0, 0.0], "row must divide its tensor"),
    ],
)
def test_a_table_that_cannot_be_is_refused(rule, row_wise, why):
    t = torch.ones(4, 10)
    addresses = [row.data_ptr() for row in t]
    entry = array("q", [10, *addresses, 0, 0, 0, 0, 0, 0])
    hyper = array("d", hyper_row(None, lr=0.1, betas=(0.9, 0.99), eps=1e-8))
    with pytest.raises(ValueError, match=why):
        backend.load_extension().update(rule, 0, entry, hyper, 1, 1, row_wise=array("d", row_wise))
    assert (t == 1).all()


@needs_extension
@pytest.mark.parametrize(("filter", "averages", "why"), [(1, [], "pairs"), (1, [0.9], "pairs"), (0, [0.9, 1.0], "EMA")])
def test_averages_that_cannot_be_are_refused(filter, averages, why):
    t = torch.ones(5, 10)
    entry = array("q", [10, *[row.data_ptr() for row in t[:4]], 0, t[4].data_ptr(), 0, 0, 0, 0])
    hyper = array("d", hyper_row(None, lr=0.1, betas=(0.9, 0.99), eps=1e-8))
    with pytest.raises(ValueError, match=f"averages .*{why}"):
        backend.load_extension().update(0, filter, entry, hyper, 1, 1, averages=array("d", averages))
    assert (t == 1).all()
