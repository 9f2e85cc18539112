"""What the tests of planned rows share."""

import torch

from grokfast.models.transformer.planned import logits_of


def planned_forward(model, plans, batch=None):
    """model(tokens) of the plans' data sets, one per model: batch [E, B] rows of each, or None -> [E, B, n_outputs]."""
    names = [name for name, _ in model.named_parameters()]
    weights = [dict(zip(names, of_model)) for of_model in zip(*(p.unbind() for p in model.parameters()))]
    rows = [plan.rows(None if batch is None else batch[e]) for e, plan in enumerate(plans)]
    return torch.stack([logits_of(model, of_model, r) for of_model, r in zip(weights, rows, strict=True)])
