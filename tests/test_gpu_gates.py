"""What `benchmarks.gpu` does before it times anything, as far as a CPU can say: build, compile, compare gradients."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_build, gpu_gradients
from grokfast import backend

ROOT = Path(__file__).parents[1]
NANDA = {"task.p": 5, "model.d_model": 8, "model.n_heads": 2, "model.d_mlp": 8}
MLP = {"task.p": 5, "model.width": 16}


@pytest.fixture
def interpreted():
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with backend.using("triton"):
        yield


@pytest.mark.parametrize(("name", "changes", "products"), [("nanda", NANDA, "ieee"), ("p = 97 MLP", MLP, "tf32")])
def test_the_kernels_gradients_are_judged_parameter_by_parameter(interpreted, name, changes, products):
    row = gpu_gradients.check(name, products, 2, "cpu", **changes)
    assert row["verdict"] == "good"
    assert 0 <= row["ratio"] <= gpu_gradients.ALLOWED


def test_one_wrong_parameter_of_the_last_model_is_found(interpreted, monkeypatch):
    whole = gpu_gradients.gradients
    calls, names = [], []

    def wrong(experiments, models, flat, rows):
        grad, ensemble = whole(experiments, models, flat, rows)
        calls.append(models)
        if len(calls) == 1:
            ensemble.runs.layout.views(grad)[ensemble.runs.layout.names[-1]][-1].flatten()[0] *= 1.001
            names.append(ensemble.runs.layout.names[-1])
        return grad, ensemble

    monkeypatch.setattr(gpu_gradients, "gradients", wrong)
    row = gpu_gradients.check("p = 97 MLP", "ieee", 3, "cpu", **MLP)
    assert calls[0] == [0, 2]
    assert row["worst"] == names[0]
    assert row["verdict"] == "WRONG: more than 2"


def test_a_gradient_that_is_not_a_number_is_wrong(interpreted, monkeypatch):
    whole = gpu_gradients.gradients

    def poisoned(experiments, models, flat, rows):
        grad, ensemble = whole(experiments, models, flat, rows)
        return (torch.full_like(grad, torch.nan) if grad.dtype == torch.float32 else grad), ensemble

    monkeypatch.setattr(gpu_gradients, "gradients", poisoned)
    assert gpu_gradients.check("p = 97 MLP", "ieee", 1, "cpu", **MLP)["verdict"].startswith("WRONG")


def test_torchs_yardstick_rounds_the_operands_of_products_forward_and_backward():
    a, b = torch.randn(8, 5, requires_grad=True), torch.randn(5, 7, requires_grad=True)
    for precision, bits in (("tf32", 10), ("bf16", 7)):
        with gpu_gradients.Rounded(precision):
            out = a @ b
            grads = torch.autograd.grad(out.square().sum(), [a, b])
        exact = a.double() @ b.double()
        error = ((out.double() - exact).norm() / exact.norm()).item()
        assert 2.0 ** -(bits + 4) < error < 2.0 ** (1 - bits)  # of two operands, cut or rounded
        of_exact = 2 * exact @ b.double().T
        assert 2.0 ** -(bits + 5) < ((grads[0].double() - of_exact).norm() / of_exact.norm()).item() < 2.0 ** (2 - bits)


def test_what_cannot_be_compared_does_not_stop_the_others(monkeypatch, tmp_path, capsys):
    def check(name, products, models):
        if name == "power":
            raise torch.OutOfMemoryError("no memory\nat all")
        return {"name": name, "worst": "bias", "ratio": 1.0, "verdict": "good" if models == 1 else "WRONG"}

    monkeypatch.setattr(gpu_gradients, "check", check)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu_gradients, "free", lambda: None)
    monkeypatch.setattr(gpu_gradients, "write", lambda title, sections, out: out.write_text(json.dumps(sections)))
    out = tmp_path / "gpu-gradients.json"
    for models, code in ((["1"], 1), (["1", "2"], 1)):
        arguments = ["--names", "nanda", "power", "--products", "tf32", "--models", *models, "--out", str(out)]
        monkeypatch.setattr(sys, "argv", ["gpu_gradients", *arguments])
        assert gpu_gradients.main() == code
    verdicts = [row["verdict"] for row in json.loads(out.read_text())["against fp64"]]
    assert verdicts == ["good", "FAILED: OutOfMemoryError: no memory", "WRONG", "FAILED: OutOfMemoryError: no memory"]
    monkeypatch.setattr(sys, "argv", ["gpu_gradients", "--names", "nanda", "--models", "1", "--products", "tf32"])
    monkeypatch.setattr(gpu_gradients, "write", lambda *about: None)
    assert gpu_gradients.main() == 0


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")
def test_what_ensembles_launch_is_compiled_in_processes(tmp_path):
    pytest.importorskip("triton")
    text = f"""
import sys
from benchmarks.gpu_compile import main
if __name__ == "__main__":
    sys.argv = ["gpu_compile", "--names", "p = 97 MLP", "--products", "tf32", "--models", "1", "2"]
    sys.exit(main({MLP!r}))
"""
    (tmp_path / "compile_some.py").write_text(text)
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "compile_some.py")]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    lines = ran.stdout.splitlines()
    assert lines[-1].endswith(" kernels, 0 failures")
    assert {"rows_kernel", "gradient_kernel", "update_kernel"} <= {line.split()[0] for line in lines[:-1]}
    assert len(list((tmp_path / "cache").rglob("*.cubin"))) == len(lines) - 1


def test_the_build_says_what_there_is_and_what_is_missing(monkeypatch):
    monkeypatch.setattr(gpu_build, "TOOLS", {"no-such-tool": "--version", sys.executable: "--version"})
    monkeypatch.setattr(gpu_build, "packages", lambda: ["torch", "no-such-package"])
    said = list(gpu_build.found())
    assert f"torch {torch.__version__}" in said
    assert "no-such-package: missing" in said
    assert "no-such-tool: missing" in said
    assert any(line.startswith(f"{sys.executable}: Python 3") for line in said)


def test_what_is_needed_is_what_the_project_says():
    names = gpu_build.packages()
    assert {"torch", "numpy", "triton", "tyro", "pytest", "pytest-xdist", "setuptools", "pybind11", "ninja"} <= {*names}
    assert all(name.replace("-", "").isalnum() for name in names)


def test_the_build_is_without_cuda_where_it_cannot_be_with(monkeypatch, capsys):
    wishes = []

    def run(command, cwd=None, env=None, check=False, **about):
        wishes.append((env or {}).get("GROKFAST_CUDA"))
        return subprocess.CompletedProcess(command, int(wishes[-1] != "0"), "", "")

    monkeypatch.setattr(gpu_build, "found", lambda: iter(()))
    monkeypatch.setattr(gpu_build.subprocess, "run", run)
    assert gpu_build.main() == 1
    assert wishes == ["1", "0", None]
    assert "GROKFAST_CUDA=1: setup.py ended with 1" in capsys.readouterr().out


MISSING = ("tyro", "expecttest", "polars", "ruff", "mypy", "importlinter")  # on a common GPU image


@pytest.mark.slow
@pytest.mark.parametrize("tests", [False, True])
def test_all_of_it_is_imported_where_only_common_packages_are(tests):
    """A GPU image has torch, Triton and pytest; what is only for the command line or for clients it need not have."""
    pytest.importorskip("triton")
    block = f"import sys; sys.modules.update(dict.fromkeys({MISSING!r})); "
    if tests:
        from benchmarks.gpu_parts import TESTS

        code = "import pytest; sys.exit(pytest.main(['--collect-only', '-q', '-o', 'addopts=--import-mode=importlib', "
        code += f"*{[f'tests/{name}' for name in TESTS]!r}]))"
    else:
        code = "import importlib; from benchmarks.gpu_parts import parts; [importlib.import_module(part.command[2]) "
        code += "for part in parts() if part.command[2] != 'pytest']"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    ran = subprocess.run(
        [sys.executable, "-c", block + code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
