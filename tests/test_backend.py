import asyncio
import contextvars
import os
import subprocess
import sys
import threading

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


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_using_is_of_the_thread_that_uses_it(unset):
    with backend.using("reference"):
        assert in_a_thread(backend.current) == "auto"
        context = contextvars.copy_context()
        assert in_a_thread(lambda: context.run(backend.current)) == "reference"

        def use():
            with backend.using("triton"):
                return backend.current()

        assert in_a_thread(use) == "triton"
        assert backend.current() == "reference"


def test_blocks_of_threads_may_end_in_any_order(unset):
    inside, over = threading.Event(), threading.Event()

    def use():
        with backend.using("reference"):
            inside.set()
            over.wait()

    thread = threading.Thread(target=use)
    with backend.using("triton"):
        thread.start()
        inside.wait()
        assert backend.current() == "triton"
    assert backend.current() == "auto"
    over.set()
    thread.join()
    assert backend.current() == "auto"


def test_using_is_of_the_task_that_uses_it(unset):
    async def use(name):
        with backend.using(name):
            await asyncio.sleep(0)
            return backend.current()

    async def both():
        return await asyncio.gather(use("reference"), use("triton"))

    assert asyncio.run(both()) == ["reference", "triton"]
    assert backend.current() == "auto"


def test_a_compiled_function_follows_the_thread_that_calls_it(unset):
    compiled = torch.compile(lambda x: x + len(backend.current()), fullgraph=True, backend="eager")
    x = torch.zeros(1)
    for _ in range(2):
        assert compiled(x) == len("auto")
        with backend.using("reference"):
            assert compiled(x) == len("reference")
            assert in_a_thread(lambda: compiled(x)) == len("auto")


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
model = grokfast.models.PairMLP(grokfast.models.PairMLPConfig(width=8), n_tokens=5, n_answers=5)
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
