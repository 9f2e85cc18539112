"""What a release hands out: the source distribution is complete, and a wheel of it needs no compiler where it goes."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = (".ci", "benchmarks", "csrc", "docs", "grokfast", "tests")
FILES = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md",
    "constraints.txt", "pyproject.toml", "setup.py",
)  # fmt: skip

pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="needs the source tree")


def done(*command, **options):
    """What a command prints; it must succeed."""
    ran = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False, **options)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def inside(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the source tree, without what a build or a run leaves there."""
    for name in ("setuptools", "pybind11", "ninja"):  # pip brings them into its build environment
        pytest.importorskip(name)
    folder = tmp_path_factory.mktemp("tree")
    for name in FOLDERS:
        ignored = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "_build_info.json", ".*_cache")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    for name in FILES:
        shutil.copy(ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def source_distribution(tree):
    """The archive. An extension that was built in the tree before is not its business."""
    there = inside(tree)
    (tree / "grokfast" / "_C.so").write_bytes(b"an older build")
    (tree / "grokfast" / "_build_info.json").write_text("{}")
    done(sys.executable, "setup.py", "-q", "sdist", "-d", "dist", cwd=tree)
    (path,) = (tree / "dist").iterdir()
    return path, there


@pytest.fixture(scope="module")
def wheel(source_distribution, tmp_path_factory):
    """Built of nothing but the archive."""
    if not any(map(shutil.which, ("c++", "g++", "clang++"))) and "CXX" not in os.environ:
        pytest.skip("needs a C++ compiler")
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "-w", str(folder)]
    done(*command, str(source_distribution[0]), cwd=folder, env={**os.environ, "GROKFAST_CUDA": "0"})
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a command of a new environment that has the wheel, the packages of this one, and no compiler."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    done(sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "-q", "--no-deps",
         "--no-index", str(wheel))  # fmt: skip
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "of_this_one.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("GROKFAST", "TRITON", "PYTHON"))}
    environment = {**kept, "PATH": str(folder / "bin"), "CXX": "/nowhere/c++"}
    return lambda name, *words: done(str(folder / "bin" / name), *words, cwd=folder, env=environment)


def test_the_source_distribution_is_complete(source_distribution):
    path, there = source_distribution
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert there - names == set()
    assert names & {"grokfast/_C.so", "grokfast/_build_info.json"} == set()
    assert {"csrc/cpu/update.cpp", "grokfast/report/templates/page.js", "LICENSE", "tests/conftest.py"} <= names


def test_a_wheel_has_what_runs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name) for name in archive.namelist()}
        note = json.loads(archive.read("grokfast/_build_info.json"))
    assert note == {"extension": True, "cuda": False, "why": "GROKFAST_CUDA=0"}
    assert {path.parts[0] for path in names} == {"grokfast", "grokfast-0.1.0.dist-info"}
    assert [path.suffix for path in names if path.parent == Path("grokfast") and path.name.startswith("_C")] == [".so"]
    assert {Path("grokfast/py.typed"), Path("grokfast-0.1.0.dist-info/licenses/LICENSE")} <= names
    carried = {path for path in ROOT.glob("grokfast/**/*") if path.suffix in (".py", ".html", ".css", ".js", ".csv")}
    assert {path.relative_to(ROOT) for path in carried} - names == set()


def test_it_runs_where_there_is_no_compiler(installed, tmp_path):
    code = "import grokfast; from grokfast import backend; print(grokfast.__file__, backend.extension().with_cuda)"
    path, with_cuda = installed("python", "-c", code).split()
    assert "environment" in path
    assert with_cuda == "False"
    assert "C++ extension   built" in installed("grokfast", "doctor")
    said = installed("grokfast", "run", "quick", "--steps", "20", "--json", "--out", str(tmp_path))
    assert json.loads(said.splitlines()[-1])["steps"] == 20
