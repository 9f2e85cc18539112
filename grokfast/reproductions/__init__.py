"""Published figures, each by one command: the recipe, what was published, what comes out here, and the verdict.

One paper is one file with a `REPRODUCTION`; its name stands in `NAMES`.
"""

from grokfast.reproductions.base import Arm, Reproduction, Version
from grokfast.reproductions.findings import Finding, Published, Summary
from grokfast.reproductions.names import NAMES, named
from grokfast.reproductions.trial import Outcome, Trial, last_verdict, reproduce

__all__ = [
    "NAMES",
    "Arm",
    "Finding",
    "Outcome",
    "Published",
    "Reproduction",
    "Summary",
    "Trial",
    "Version",
    "last_verdict",
    "named",
    "reproduce",
]
