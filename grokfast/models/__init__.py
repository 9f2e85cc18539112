"""What learns: small models with a leading ensemble axis."""

from grokfast.models.pair_mlp.model import PairMLP, PairMLPConfig
from grokfast.models.transformer.model import GrokTransformer, TransformerConfig
from grokfast.models.transformer.plan import Plan

__all__ = ["GrokTransformer", "PairMLP", "PairMLPConfig", "Plan", "TransformerConfig"]
