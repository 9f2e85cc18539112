"""Operations that stand alone in anybody's script: plain-PyTorch reference, fast paths, one public function each."""

from grokfast.ops.attention import attention
from grokfast.ops.classify import classify
from grokfast.ops.gathered_attention import gathered_attention
from grokfast.ops.layer_norm import layer_norm
from grokfast.ops.linear_cross_entropy import linear_cross_entropy
from grokfast.ops.mlp import mlp
from grokfast.ops.pair_embed import pair_embed
from grokfast.ops.rows import PairIndex, RowIndex

__all__ = [
    "PairIndex",
    "RowIndex",
    "attention",
    "classify",
    "gathered_attention",
    "layer_norm",
    "linear_cross_entropy",
    "mlp",
    "pair_embed",
]
