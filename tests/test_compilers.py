"""The kernels under several compilers: which are taken, what is said of them, and what fails."""

import os
import sys

import pytest

pytest.importorskip("triton")
from benchmarks import compilers
from benchmarks.compilers import Environment, faults, newest_ptx, other_ptxas

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")


def row(**found):
    return {"kernel": "a", "from": "0", "sm": 90, "found": found}


def test_ptx_has_the_version_that_the_other_ptxas_knows():
    assert [newest_ptx(cuda) for cuda in ("12.4", "12.8", "12.9", "13.0", "13.1")] == [
        "8.4",
        "8.7",
        "8.8",
        "9.0",
        "9.1",
    ]


def test_few_bytes_are_a_warning_that_names_the_compiler_and_many_fail():
    assert list(faults(row(new=[255, 0, 1000]))) == []
    assert list(faults(row(old=[255, 99, 1000]))) == [(False, "old, sm_90, a: 99 bytes spilled, 1,000 shared")]
    assert [fails for fails, _ in faults(row(old=[255, 100, 0], new=[128, 0, 228 << 10]))] == [True, True]
    assert list(faults(row(old="CompilationError: at 19"))) == [(True, "old, sm_90, a: CompilationError: at 19")]


def test_those_in_danger_are_some_of_all(capfd):
    program = """if True:
        from benchmarks.compilers import in_danger
        some, every = (in_danger([90], ["fused", "nanda, tf32$"], everything) for everything in (False, True))
        assert every and all(row in every for row in some)
        assert all(row["kernel"].endswith("nanda, tf32") and row["sm"] == 90 for row in every)
    """
    assert Environment(sys.executable).run("-c", program).wait() == 0, capfd.readouterr().err


def test_the_ptxas_that_is_asked_for_is_not_taken_for_tritons_own(monkeypatch, capfd):
    monkeypatch.setenv("TRITON_PTXAS_PATH", "/a/ptxas")
    assert other_ptxas() == "/a/ptxas"
    asks = f"import os; print([name for name in {compilers.CHANGES!r} if name in os.environ], os.environ['PYTHONPATH'])"
    assert Environment(sys.executable, "/first").run("-c", asks).wait() == 0
    assert capfd.readouterr().out.strip().startswith(f"[] {os.pathsep.join(['/first'])}")


def test_a_triton_is_installed_once(monkeypatch, tmp_path):
    asked = []

    def install(command, check):
        asked.append(command)
        (tmp_path / f"triton-9.9.{os.getpid()}").mkdir()

    monkeypatch.setattr(compilers, "folder", lambda: tmp_path)
    monkeypatch.setattr(compilers.subprocess, "run", install)
    assert (
        compilers.installed("9.9")
        == compilers.installed("9.9")
        == Environment(sys.executable, str(tmp_path / "triton-9.9"))
    )
    assert len(asked) == 1
    assert asked[0][-2:] == ["triton==9.9", "numpy<2.4"]
