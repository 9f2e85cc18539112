import subprocess
import sys

import pytest

HEAVY = {
    "matplotlib",
    "sqlite3",
    "tyro",
    "rich",
    "triton",
    "tensorboard",
    "wandb",
    "ray",
    "safetensors",
    "scipy",
    "pandas",
}


def python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    "code",
    [
        "import grokfast; grokfast.GrokFast",
        "import grokfast; grokfast.GrokFast, grokfast.nn, grokfast.ops, grokfast.tasks",
        "import grokfast; grokfast.GrokFast; import grokfast.analysis",
    ],
)
def test_import_is_light(code):
    loaded = python(f"import sys, torch; before = set(sys.modules); {code}; print(*(set(sys.modules) - before))")
    assert "grokfast.optim" in loaded
    assert not HEAVY & {name.partition(".")[0] for name in loaded}


def test_what_is_offered_is_there():
    import grokfast

    for name in (*grokfast.__all__, "nn", "ops", "optim", "tasks", "RunResult", "RunStore", "SweepResult"):
        assert getattr(grokfast, name)
    with pytest.raises(AttributeError, match="'grokfast' has no attribute 'gradfilter'"):
        grokfast.gradfilter  # noqa: B018


def test_a_star_import_leaves_torchs_names_alone():
    code = """
import torch
import torch.nn as nn
import torch.optim as optim
from grokfast import *
assert nn is torch.nn and optim is torch.optim
print(*sorted(name for name in dir() if not name.startswith("_")))
"""
    import grokfast

    assert python(code) == sorted([*grokfast.__all__, "nn", "optim", "torch"])


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
@pytest.mark.parametrize("first", ["import grokfast._C", "import grokfast.backend; grokfast.backend.load_extension()"])
def test_extension_and_torch_share_one_openmp_runtime(compiled, first):
    code = f"{first}; import torch; print(*{{line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line}})"
    runtimes = [path for path in python(code) if "gomp" in path or "iomp" in path or "libomp" in path]
    assert len(runtimes) <= 1
