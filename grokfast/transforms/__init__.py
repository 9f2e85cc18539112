"""What is done to gradients, updates or weights."""

from grokfast.transforms.base import Layout, Transform
from grokfast.transforms.chain import Chain
from grokfast.transforms.filters import EMA, MA

__all__ = ["EMA", "MA", "Chain", "Layout", "Transform"]
