"""Drop-in layers for anybody's model."""

from grokfast.nn.layers import MLP, Attention

__all__ = ["MLP", "Attention"]
