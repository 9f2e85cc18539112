"""Small models with a leading ensemble axis."""

from grokfast.nn.mlp import PairMLP, PairMLPConfig
from grokfast.nn.plan import Plan
from grokfast.nn.planned import planned_forward
from grokfast.nn.transformer import GrokTransformer, TransformerConfig

__all__ = ["GrokTransformer", "PairMLP", "PairMLPConfig", "Plan", "TransformerConfig", "planned_forward"]
