import os
import subprocess
import sys

import pytest
import torch

from grokfast import backend


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def unset(monkeypatch):
    monkeypatch.delenv("GROKFAST_BACKEND", raising=False)


def test_auto_is_the_default(unset):
    assert backend.current() == "auto"


def test_the_environment_forces_plain_pytorch(monkeypatch):
    monkeypatch.setenv("GROKFAST_BACKEND", "reference")
    assert backend.extension() is None
    assert backend.why_no_extension() == "GROKFAST_BACKEND=reference"


def test_a_wrong_environment_value_is_named(monkeypatch):
    monkeypatch.setenv("GROKFAST_BACKEND", "refrence")
    with pytest.raises(ValueError, match=r"^GROKFAST_BACKEND must be one of 'auto', 'reference', .*'reference'\?\)$"):
        backend.extension()


def test_using_overrules_the_environment_and_nests(monkeypatch):
    monkeypatch.setenv("GROKFAST_BACKEND", "reference")
    with backend.using("auto"):
        assert backend.current() == "auto"
        with backend.using("reference"):
            assert backend.current() == "reference"
        assert backend.current() == "auto"
    assert backend.current() == "reference"


def test_using_ends_with_an_exception(unset):
    with pytest.raises(KeyError), backend.using("reference"):
        raise KeyError
    assert backend.current() == "auto"


def test_using_refuses_other_names(unset):
    with (
        pytest.raises(ValueError, match=r"^backend must be one of 'auto', 'reference', 'triton', 'cuda', got 'gpu'"),
        backend.using("gpu"),
    ):
        pass
    assert backend.current() == "auto"


def test_the_extension_is_found_where_it_is_built(compiled):
    assert backend.extension() is compiled is backend.load_extension()
    assert backend.why_no_extension() == ""


@pytest.mark.parametrize(
    "t",
    [
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, device="meta"),
        torch.zeros(3).to_sparse(),
        torch._neg_view(torch.zeros(3)),
        torch.nn.Buffer(torch.zeros(3)).as_subclass(type("Own", (torch.Tensor,), {})),
    ],
    ids=["dtype", "device", "sparse", "negated", "subclass"],
)
def test_only_plain_tensors_are_read_by_pointer(t):
    assert backend.plain(torch.zeros(3))
    assert backend.plain(torch.nn.Parameter(torch.zeros(2, 3).T))
    assert not backend.plain(t)


BLOCKED = """
import json, pathlib, sys
sys.modules["grokfast._C"] = None  # importing it raises ImportError
import torch, grokfast
from grokfast import backend
backend.build_info = lambda: {info}
assert backend.extension() is None
assert {why!r} in backend.why_no_extension(), backend.why_no_extension()
try:
    backend.load_extension()
except ImportError as error:
    assert {why!r} in str(error)
model = grokfast.nn.PairMLP(grokfast.nn.PairMLPConfig(width=8), n_tokens=5, n_answers=5)
pairs = torch.cartesian_prod(torch.arange(5), torch.arange(5))
before = None
for filter in (grokfast.EMA(), grokfast.MA(2)):
    opt = grokfast.GrokFast(torch.optim.AdamW(model.parameters(), lr=1e-2), filter)
    for _ in range(4):
        opt.zero_grad()
        loss, accuracy = grokfast.ops.classify(model(pairs), (pairs.sum(1) % 5)[None])
        loss.sum().backward()
        opt.step()
        assert before is None or loss < before
        before = loss.detach()
print("worked")
"""


@pytest.mark.parametrize(
    ("info", "why"),
    [
        ({"extension": False, "why": "no C++ compiler found"}, "no C++ compiler found"),
        ({"extension": True, "why": "nvcc was not found"}, "halted"),  # built, but it cannot be imported
        ({}, "halted"),
    ],
)
def test_everything_works_without_the_extension_and_the_reason_is_said(info, why):
    done = python(BLOCKED.format(info=info, why=why), GROKFAST_BACKEND="auto")
    assert done.stdout.strip() == "worked", done.stderr
