"""Losses as parts: what a model's outputs are to be, given the targets."""

from __future__ import annotations

from typing import ClassVar

from grokfast.parts import Part


class Loss(Part):
    """Base of the losses."""

    family: ClassVar[str] = "loss"
