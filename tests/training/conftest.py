import dataclasses

import pytest

from grokfast import backend
from grokfast.training import ensemble


@pytest.fixture
def kernels():
    """The fused step, in the interpreter where there is no GPU."""
    pytest.importorskip("triton")
    with backend.using("triton"):
        yield


@pytest.fixture
def replayed(monkeypatch):
    """Plain PyTorch, replayed on any device."""
    choose = ensemble.choose
    monkeypatch.setattr(ensemble, "choose", lambda *a, **k: dataclasses.replace(choose(*a, **k), why_no_replay=""))
    with backend.using("reference"):
        yield


@pytest.fixture(params=["step by step", "replayed"])
def how(request):
    """Plain PyTorch in both ways."""
    if request.param == "replayed":
        request.getfixturevalue("replayed")
    with backend.using("reference"):
        yield request.param
