"""What learns: small models with a leading ensemble axis, and the ways to compute them."""

from grokfast.models import autograd, tiles
from grokfast.models.base import Model, Step
from grokfast.models.mlp import MLP, MLPConfig
from grokfast.models.module import Module
from grokfast.models.pair_mlp import steps as _pair_mlp
from grokfast.models.pair_mlp.model import PairMLP, PairMLPConfig
from grokfast.models.token_mlp import TokenMLP, TokenMLPConfig
from grokfast.models.transformer import steps as _transformer
from grokfast.models.transformer.model import GrokTransformer, TransformerConfig
from grokfast.models.transformer.plan import Plan

# What computes a model registers itself with it: models know nothing of their Steps.
WAYS = (autograd, tiles, _pair_mlp, _transformer)

__all__ = [
    "MLP", "GrokTransformer", "MLPConfig", "Model", "Module", "PairMLP", "PairMLPConfig", "Plan", "Step",
    "TokenMLP", "TokenMLPConfig", "TransformerConfig",
]  # fmt: skip
