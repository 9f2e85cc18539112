"""The extension's build: with and without a compiler, with and without CUDA. Works on a copy of the sources."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
TEMPLATES = {"page.html", "page.css", "page.js"}

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


def test_the_oldest_python_is_the_same_wherever_it_is_said():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    oldest = project["project"]["requires-python"].removeprefix(">=")
    major, minor = oldest.split(".")
    assert project["tool"]["ruff"]["target-version"] == f"py{major}{minor}"
    assert project["tool"]["mypy"]["python_version"] == oldest
    setup = (ROOT / "setup.py").read_text()
    assert f"sys.version_info < ({major}, {minor})" in setup
    assert f"needs Python {oldest} or later" in setup


@pytest.fixture(scope="module")
def tools():
    """Skips where setuptools, pybind11 or ninja, which pip brings into its build environment, are not installed."""
    for name in ("setuptools", "pybind11", "ninja"):
        pytest.importorskip(name)


@pytest.fixture
def source(tmp_path, tools):
    """A copy of what is needed to build."""
    ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "_build_info.json")
    for name in ("grokfast", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def build(source, **environment):
    """The in-place build of an editable installation."""
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    return subprocess.run(
        command, cwd=source, env={**os.environ, **environment}, capture_output=True, text=True, timeout=300
    )


def built(source):
    """The shared libraries and the note in the package."""
    package = source / "grokfast"
    note = package / "_build_info.json"
    return [path.name for path in package.glob("_C*.so")], json.loads(note.read_text()) if note.exists() else None


def python(source, code):
    """What `code` prints beside the copy; without .pth files, or an editable installation lends its extension."""
    environment = {**os.environ, "PYTHONPATH": str(Path(torch.__file__).parents[1]), "GROKFAST_BACKEND": "auto"}
    done = subprocess.run(
        [sys.executable, "-S", "-c", code], cwd=source, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


STEP = """
import pathlib, torch, grokfast
from grokfast import backend
assert pathlib.Path(grokfast.__file__).parent == pathlib.Path.cwd() / "grokfast"
p = torch.nn.Parameter(torch.zeros(3))
opt = grokfast.GrokFast(torch.optim.AdamW([p], lr=0.5), grokfast.EMA())
p.grad = torch.ones(3)
opt.step()
print(round(p.tolist()[0], 6), backend.extension() is not None, getattr(backend.extension(), "with_cuda", None))
"""


def test_without_a_compiler_the_build_succeeds_and_says_what_is_missing(source):
    (source / "grokfast" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}").write_bytes(b"an older build")
    done = build(source, CXX="/nowhere/c++", GROKFAST_CUDA="0")
    assert done.returncode == 0, done.stderr
    why = "no C++ compiler found (looked for /nowhere/c++)"
    assert f"grokfast._C was not built, everything will run on plain PyTorch: {why}" in done.stdout + done.stderr
    assert built(source) == ([], {"extension": False, "cuda": False, "why": why})
    assert python(source, STEP) == ["-0.5", "False", "None"]
    assert python(source, "from grokfast import backend; print(backend.why_no_extension())") == why.split()


def test_a_failing_compiler_is_quoted(source):
    compiler = source / "broken"
    compiler.write_text("#!/bin/sh\necho 'internal error: out of cheese' >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = build(source, CXX=str(compiler), GROKFAST_CUDA="0")
    assert done.returncode == 0, done.stderr
    libraries, note = built(source)
    assert libraries == []
    assert "the compiler failed" in note["why"]
    assert "out of cheese" in note["why"]


def test_a_wheel_without_a_compiler_installs(source):
    """As `pip install .` does it."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-build-isolation",
        "--no-deps",
        "--target",
        "there",
        ".",
    ]
    environment = {**os.environ, "CXX": "/nowhere/c++", "GROKFAST_CUDA": "0"}
    done = subprocess.run(command, cwd=source, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert built(source / "there")[0] == []
    assert not built(source / "there")[1]["extension"]
    assert python(source / "there", STEP) == ["-0.5", "False", "None"]
    assert {path.name for path in (source / "there" / "grokfast" / "report" / "templates").iterdir()} == TEMPLATES


def test_cuda_on_demand_fails_without_nvcc(source):
    done = build(source, GROKFAST_CUDA="1", PATH="/nowhere", CUDA_HOME="/nowhere")
    assert done.returncode != 0
    assert "GROKFAST_CUDA=1, but nvcc was not found (set PATH or CUDA_HOME)" in done.stderr
    assert "Traceback" not in done.stderr
    assert built(source) == ([], None)


@pytest.mark.parametrize("value", ["yes", "", "2"])
def test_an_unknown_wish_for_cuda_is_refused(source, value):
    done = build(source, GROKFAST_CUDA=value)
    assert done.returncode != 0
    assert f"GROKFAST_CUDA must be '0', '1' or 'auto', got {value!r}" in done.stderr
    assert built(source) == ([], None)


def test_a_broken_nvcc_costs_only_cuda(source):
    if shutil.which("c++") is None:
        pytest.skip("needs a C++ compiler")
    nvcc = source / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        f"#!/bin/sh\n[ \"$1\" = --dryrun ] && echo '#$ TOP={source}' >&2 && exit\necho 'no licence' >&2\nexit 1\n"
    )
    nvcc.chmod(0o755)
    done = build(source, GROKFAST_CUDA="auto", PATH=f"{nvcc.parent}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    libraries, note = built(source)
    assert len(libraries) == 1
    assert (note["extension"], note["cuda"]) == (True, False)
    assert f"nvcc at {source} failed, built without CUDA" in note["why"]
    assert "no licence" in note["why"]
