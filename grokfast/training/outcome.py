"""What happened in a run: when it memorised, when it generalised, and which phase of Liu et al. (2022) that is."""

from __future__ import annotations

from grokfast.store.records import Record
from grokfast.training.experiment import Criteria

COLLAPSE = 0.2  # a test accuracy that ends this far below its maximum, `sustain` times in a row, is a collapse


class Crossing:
    """The first step at which a value reaches `threshold` and stays there for `sustain` evaluations in a row."""

    def __init__(self, threshold: float, sustain: int) -> None:
        self.threshold, self.sustain = threshold, sustain
        self.moment: int | None = None
        self.established: int | None = None  # the last of these evaluations, from which on it is known
        self.first, self.streak = 0, 0  # where the present run of such values began, and its length

    def update(self, step: int, value: float) -> None:
        if self.moment is not None:
            return
        if not value >= self.threshold:  # NaN breaks the streak, too
            self.streak = 0
            return
        if self.streak == 0:
            self.first = step
        self.streak += 1
        if self.streak == self.sustain:
            self.moment, self.established = self.first, step


class Outcome:
    """Follows a run's evaluations. Phases, with t_memorize and t_generalize the sustained crossings of the threshold:

    "confusion" never memorises, "memorization" never generalises, "comprehension" generalises less than `grok_gap`
    steps after memorising, "grokking" later than that.
    """

    def __init__(self, criteria: Criteria) -> None:
        self.criteria = criteria
        self._train = Crossing(criteria.threshold, criteria.sustain)
        self._test = Crossing(criteria.threshold, criteria.sustain)
        self._best = 0.0
        self._latest: list[float] = []

    def update(self, record: Record) -> None:
        """Take the next evaluation into account."""
        self._train.update(record.step, record.train_accuracy)
        self._test.update(record.step, record.test_accuracy)
        self._best = max(self._best, record.test_accuracy)
        self._latest = [*self._latest, record.test_accuracy][-self.criteria.sustain :]

    @property
    def memorizing(self) -> Crossing:
        """That of the training accuracy."""
        return self._train

    @property
    def crossing(self) -> Crossing:
        """That of the test accuracy."""
        return self._test

    @property
    def t_memorize(self) -> int | None:
        return self._train.moment

    @property
    def t_generalize(self) -> int | None:
        return self._test.moment

    @property
    def phase(self) -> str:
        if self.t_memorize is None:
            return "confusion"
        if self.t_generalize is None:
            return "memorization"
        return "grokking" if self.t_generalize - self.t_memorize >= self.criteria.grok_gap else "comprehension"

    @property
    def collapsed(self) -> bool:
        """Whether the test accuracy ended well below its maximum after generalising."""
        if self.t_generalize is None:
            return False
        return not max(self._latest) >= self._best - COLLAPSE

    @property
    def stage(self) -> str:
        """Where the run is now: memorising, plateau, generalising, or done."""
        if self.t_generalize is not None:
            return "generalised"
        if self.t_memorize is None:
            return "memorising"
        return "generalising" if self._latest and self._latest[-1] >= self.criteria.threshold / 2 else "plateau"

    def sentence(self, steps: int, diverged_at: int | None = None) -> str:
        """What happened, in words."""
        memorized, generalized = self.t_memorize, self.t_generalize
        if diverged_at is not None:
            story = f"diverged at step {diverged_at}: the loss, a gradient or the weights were no longer finite"
            return story if memorized is None else f"memorised at step {memorized}, {story}"
        if memorized is None and generalized is None:
            return f"did not memorise in {steps} steps"
        if generalized is None:
            return f"memorised at step {memorized}, had not generalised after {steps} steps"
        if memorized is None:
            return f"generalised at step {generalized} without memorising the training labels"
        if memorized == 0 or generalized <= memorized:
            story = f"memorised at step {memorized}, generalised at step {generalized}"
        else:
            story = f"memorised at step {memorized}, generalised at step {generalized}, "
            story += f"{generalized / memorized:.3g}× later"
        return f"{story}; then test accuracy collapsed to {self._latest[-1]:.0%}" if self.collapsed else story
