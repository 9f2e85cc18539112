"""Drop-in layers for anybody's model, and small models with a leading ensemble axis."""

from grokfast.nn.layers import MLP, Attention
from grokfast.nn.mlp import PairMLP, PairMLPConfig
from grokfast.nn.plan import Plan
from grokfast.nn.planned import planned_forward
from grokfast.nn.transformer import GrokTransformer, TransformerConfig

__all__ = [
    "MLP",
    "Attention",
    "GrokTransformer",
    "PairMLP",
    "PairMLPConfig",
    "Plan",
    "TransformerConfig",
    "planned_forward",
]
