"""Small models with a leading ensemble axis."""

from grokfast.nn.mlp import PairMLP, PairMLPConfig
from grokfast.nn.transformer import GrokTransformer, TransformerConfig

__all__ = ["GrokTransformer", "PairMLP", "PairMLPConfig", "TransformerConfig"]
