"""Operations that stand alone in anybody's script: plain-PyTorch reference, fast paths, one public function each."""

from grokfast.ops.attention import attention
from grokfast.ops.classify import classify
from grokfast.ops.linear_cross_entropy import linear_cross_entropy
from grokfast.ops.mlp import mlp
from grokfast.ops.pair_embed import pair_embed

__all__ = ["attention", "classify", "linear_cross_entropy", "mlp", "pair_embed"]
