"""What a transform does over 50 steps, against a loop that a test writes from its equation.

    class ByHand(Loop):
        def before(self, weights, grads, step): ...

    test = cases([OrthoGrad(0.2), OrthoGrad(0.7), OrthoGrad(1.0)], ByHand)

`check` trains three models whose transforms differ in strength, in float64: by hand, one tensor at a time; in an
ensemble; in an ensemble that is resumed from its state in the middle; and each model by itself with `GrokFast`,
resumed from a saved state dict. All must agree. In float32 a model's bits are the same alone and beside the others, and
where there is a GPU a captured step does what the others do.
"""

import io

import pytest
import torch

from grokfast import GrokFast
from grokfast.transforms import Layout
from grokfast.transforms.flat import FlatOptimizer
from grokfast.transforms.optimizers import SGD, AdamW

SHAPES = {
    "embedding": (5, 4), "layers.0.weight": (4, 6), "layers.1.weight": (4, 6), "layers.2.weight": (7, 3),
    "bias": (4,), "gain": (), "out.weight": (3, 4),
}  # fmt: skip
LAYOUT = Layout.of(SHAPES)
STEPS, MIDDLE = 50, 25
OPTIMIZERS = {"adamw": AdamW(lr=1e-2, weight_decay=0.5), "sgd": SGD(lr=3e-2, momentum=0.9)}
# Losses by training and test, one per model, as evaluations find them after so many steps.
LOSSES = {10: ([0.5, 0.1, 2.0], [1.0, 3.0, 1.0]), 30: ([0.1, 0.1, 0.1], [0.1, 9.0, 0.2])}


class Loop:
    """A transform by hand, on one model's tensors by name: what it does before torch's update and after it."""

    def __init__(self, transform):
        self.transform = transform

    def before(self, weights, grads, step):
        """The gradients that the update is to take; weights may be looked at."""
        return grads

    def after(self, weights, step):
        """The weights after the update."""
        return weights

    def observe(self, train_loss, test_loss):
        """An evaluation, after so many steps."""


def rows(seed, models=3, dtype=torch.float64):
    """Numbers [models, P], the same in any precision but for rounding."""
    own = torch.Generator().manual_seed(seed)
    return torch.randn(models, LAYOUT.size, generator=own, dtype=torch.float64).to(dtype)


def tensors(flat, model):
    """One model's parameters by name, copied."""
    return {name: t[0].clone() for name, t in LAYOUT.views(flat[model : model + 1]).items()}


def torchs(config, parameters):
    """torch's own optimizer for a configuration."""
    if config.rule == "sgd":
        return torch.optim.SGD(parameters, lr=config.lr, momentum=config.momentum)
    return torch.optim.AdamW(parameters, lr=config.lr, betas=config.betas, weight_decay=config.weight_decay)


def expected(transforms, by_hand, config, steps=STEPS):
    """Weights [models, P] of the loop by hand, float64."""
    found = []
    for model, transform in enumerate(transforms):
        loop, own = by_hand(transform), tensors(rows(0), model)
        optimizer = torchs(config, list(own.values()))
        for step in range(steps):
            if step in LOSSES:
                loop.observe(*(losses[model] for losses in LOSSES[step]))
            grads = loop.before({name: t.clone() for name, t in own.items()}, tensors(rows(1 + step), model), step)
            for name, t in own.items():
                t.grad = grads[name]
            optimizer.step()
            for name, t in loop.after({name: t.clone() for name, t in own.items()}, step).items():
                own[name].copy_(t)
        found.append(torch.cat([t.flatten() for t in own.values()]))
    return torch.stack(found)


def in_ensemble(transforms, config, *, models=range(3), dtype=torch.float64, resumed=False, device="cpu"):
    """Weights [models, P] of models that train together."""
    models = list(models)
    own, configs = [transforms[i] for i in models], [config] * len(models)
    flat = rows(0, dtype=dtype)[models].to(device)
    optimizer = FlatOptimizer(flat, configs, own, LAYOUT)
    for step in range(STEPS):
        if resumed and step == MIDDLE:
            state, optimizer = optimizer.state, FlatOptimizer(flat, configs, own, LAYOUT)
            for name, t in state.items():
                optimizer.state[name].copy_(t)
            optimizer.steps = step
        if step in LOSSES:
            observed(optimizer, step, models, flat)
        optimizer.step(flat, rows(1 + step, dtype=dtype)[models].to(device))
    return flat


def observed(optimizer, step, models, like):
    """Tell an ensemble of an evaluation."""
    if hasattr(optimizer, "observe"):
        train, test = ([losses[i] for i in models] for losses in LOSSES[step])
        optimizer.observe(*(torch.tensor(own, dtype=like.dtype, device=like.device) for own in (train, test)))


def captured(transforms, config):
    """Weights [3, P] where all steps but the first are one graph, replayed."""
    flat, grad = rows(0).cuda(), rows(1).cuda()
    optimizer = FlatOptimizer(flat, [config] * 3, transforms, LAYOUT)
    assert not optimizer.why_no_graph()
    optimizer.step(flat, grad.clone())
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph, stream=stream):
        optimizer.step(flat, grad.clone())
    for step in range(1, STEPS):
        grad.copy_(rows(1 + step))
        if step in LOSSES:
            observed(optimizer, step, range(3), flat)
        graph.replay()
    return flat.cpu()


def in_grokfast(transforms, config):
    """Weights [3, P] of models that train alone, each with torch's optimizer in `GrokFast`, resumed in the middle."""
    found = []
    for model, transform in enumerate(transforms):
        parameters = {name: torch.nn.Parameter(t) for name, t in tensors(rows(0), model).items()}
        optimizer = GrokFast(torchs(config, parameters.items()), transform)
        for step in range(STEPS):
            if step == MIDDLE:
                file = io.BytesIO()
                torch.save(optimizer.state_dict(), file)
                parameters = {name: torch.nn.Parameter(p.detach().clone()) for name, p in parameters.items()}
                optimizer = GrokFast(torchs(config, parameters.items()), transform)
                file.seek(0)
                optimizer.load_state_dict(torch.load(file))
            for name, grad in tensors(rows(1 + step), model).items():
                parameters[name].grad = grad
            if step in LOSSES and hasattr(optimizer, "observe"):
                optimizer.observe(*(losses[model] for losses in LOSSES[step]))
            optimizer.step()
        found.append(torch.cat([p.detach().flatten() for p in parameters.values()]))
    return torch.stack(found)


def close(found, wanted):
    """To rounding, which 50 steps add up."""
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def in_an_ensemble(transforms, by_hand, config):
    wanted = expected(transforms, by_hand, config)
    found = in_ensemble(transforms, config)
    close(found, wanted)
    plain = in_ensemble([None] * 3, config)
    assert (found - plain).abs().amax(1).gt(1e-4).all()  # it does something to each of the models
    assert torch.equal(in_ensemble(transforms, config, resumed=True), found)


def in_a_script(transforms, by_hand, config):
    close(in_grokfast(transforms, config), expected(transforms, by_hand, config))


def to_the_same_bits_alone(transforms, by_hand, config):
    together = in_ensemble(transforms, config, dtype=torch.float32)
    assert torch.equal(together[1:2], in_ensemble(transforms, config, models=[1], dtype=torch.float32))


def in_a_graph(transforms, by_hand, config):
    close(captured(transforms, config), expected(transforms, by_hand, config))


def cases(transforms, by_hand, optimizers=OPTIMIZERS, *, takes_graphs=True):
    """A test of all of this."""
    ways = [in_an_ensemble, in_a_script, to_the_same_bits_alone]
    gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
    if takes_graphs:
        ways.append(pytest.param(in_a_graph, marks=gpu))

    @pytest.mark.parametrize("way", ways)
    @pytest.mark.parametrize("optimizer", optimizers)
    def test(way, optimizer):
        torch.set_grad_enabled(False)
        try:
            way(transforms, by_hand, optimizers[optimizer])
        finally:
            torch.set_grad_enabled(True)

    return test
