import pytest

from grokfast.sweeps import InProcess


@pytest.fixture
def here(monkeypatch):
    """`--processes N` trains here: what is said is tested; workers, which import torch first, are in tests/sweeps."""
    monkeypatch.setattr("grokfast.cli.sweep.Processes", lambda n: InProcess())
