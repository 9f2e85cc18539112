"""Which path a step took."""

import pytest

from grokfast.transforms.rows import FILTER_ONLY


@pytest.fixture
def one_pass(compiled, monkeypatch):
    """Counts the calls of the one-pass kernel."""
    calls, update = [], compiled.update

    def counted(rule, *arguments, **options):
        if rule != FILTER_ONLY:
            calls.append(1)
        update(rule, *arguments, **options)

    monkeypatch.setattr(compiled, "update", counted)
    return calls


@pytest.fixture
def took(one_pass):
    """took("one pass" | "generic") asserts which path every step since the last question went."""

    def check(path, steps=None):
        assert bool(one_pass) == (path == "one pass")
        assert steps is None or len(one_pass) == steps
        one_pass.clear()

    return check
