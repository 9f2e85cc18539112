"""Operations that stand alone in anybody's script: plain-PyTorch reference, fast paths, one public function each."""

from grokfast.ops.classify import classify
from grokfast.ops.gathered_attention import gathered_attention
from grokfast.ops.layer_norm import layer_norm
from grokfast.ops.mlp import mlp
from grokfast.ops.pair_embed import pair_embed
from grokfast.ops.rows import RowIndex

__all__ = ["RowIndex", "classify", "gathered_attention", "layer_norm", "mlp", "pair_embed"]
