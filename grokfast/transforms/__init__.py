"""What is done to gradients, updates or weights."""

from grokfast.transforms.base import Layout, Transform
from grokfast.transforms.chain import Chain
from grokfast.transforms.egd import EGD
from grokfast.transforms.filters import EMA, MA
from grokfast.transforms.grokadamw import GrokAdamW
from grokfast.transforms.multi_ema import MultiEMA
from grokfast.transforms.norm_clamp import NormClamp
from grokfast.transforms.norm_clip import NormClip
from grokfast.transforms.orthograd import OrthoGrad
from grokfast.transforms.penalties import L1, Compression, Nuclear
from grokfast.transforms.sam import SAM
from grokfast.transforms.spherical import Spherical

__all__ = [
    "EGD", "EMA", "L1", "MA", "SAM", "Chain", "Compression", "GrokAdamW", "Layout", "MultiEMA", "NormClamp", "NormClip",
    "Nuclear", "OrthoGrad", "Spherical", "Transform",
]  # fmt: skip
