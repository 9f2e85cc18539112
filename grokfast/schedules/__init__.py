"""What changes with the step."""

from grokfast.schedules.base import Change

__all__ = ["Change"]
