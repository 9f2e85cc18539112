"""Operations that stand alone in anybody's script: plain-PyTorch reference, fast paths, one public function each."""

from grokfast.ops.classify import classify
from grokfast.ops.mlp import mlp
from grokfast.ops.pair_embed import pair_embed

__all__ = ["classify", "mlp", "pair_embed"]
