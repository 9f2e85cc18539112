"""What the tests of planned rows and of the steps over them share."""

import torch

from grokfast.models.transformer.planned import logits_of
from grokfast.models.transformer.steps import Plain
from grokfast.training.ensemble import Ensemble


def planned_forward(model, plans, batch=None):
    """model(tokens) of the plans' data sets, one per model: batch [E, B] rows of each, or None -> [E, B, n_outputs]."""
    names = [name for name, _ in model.named_parameters()]
    weights = [dict(zip(names, of_model)) for of_model in zip(*(p.unbind() for p in model.parameters()))]
    rows = [plan.rows(None if batch is None else batch[e]) for e, plan in enumerate(plans)]
    return torch.stack([logits_of(model, of_model, r) for of_model, r in zip(weights, rows, strict=True)])


def gradients_of(ensemble, batch=None, *, way):
    """Gradient, loss and accuracy of an ensemble's training rows by one of the ways, and those of its test rows."""
    step, grad = way(ensemble.runs), torch.full_like(ensemble.flat, torch.nan)
    values = [torch.full_like(grad[:, 0], torch.nan) for _ in range(4)]
    step.gradient(ensemble.flat, grad, values[0], batch, values[1])
    step.measure("test", ensemble.flat, *values[2:])
    return [grad, *values]


def first_batch(ensemble):
    return None if ensemble.orders is None else ensemble.orders.batch(0)


def assert_within_twice_torchs_error(way, experiment):
    """experiment(**changes) makes one of the variant."""
    ours, exact = Ensemble([experiment()]), Ensemble([experiment(precision="float64")])
    exact.flat.copy_(ours.flat)
    batch = first_batch(ours)
    found = [gradients_of(one, batch, way=by) for one, by in ((ours, way), (ours, Plain), (exact, Plain))]
    for own, torchs, value in zip(*found, strict=True):
        error, bound = ((t - value).abs().max().item() for t in (own, torchs))
        assert error <= 2 * bound + 4 * torch.finfo(torch.float32).eps * value.abs().max().item()
