"""Shipped Triton kernels compile for GPUs that are not here, and spill next to nothing.

What is as it was when the committed table was made, and far from spilling, is not compiled again.
"""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]
KNOWN = ROOT / "benchmarks/results/kernel-resources.json"


pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")


def compiling():
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def test_what_is_known_is_known_by_all_that_it_is_compiled_from():
    program = """if True:
        from benchmarks.resources import fingerprint
        from benchmarks.prediction.shipped.fused import shipped
        one, *others = [c for c in shipped() if "weights" in c["name"]]
        changed = [one | {"num_warps": 2}, one | {"constants": one["constants"] | {"CHUNKS": 3}}, one | {"aligned": []}]
        other_code = one | {"kernel": shipped()[0]["kernel"]}
        names = [fingerprint(c) for c in (one, *changed, other_code)]
        assert len(set(names)) == len(names), names
        assert fingerprint(one | {"name": "a name"}) == names[0]
    """
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=compiling(), check=True)


def test_no_kernel_spills_more_than_a_few_numbers(tmp_path):
    command = [
        sys.executable,
        "-m",
        "benchmarks.resources",
        "--out",
        str(tmp_path / "table.json"),
        "--known",
        str(KNOWN),
    ]
    ran = subprocess.run(command, cwd=ROOT, env=compiling(), capture_output=True, text=True, check=False)
    assert (tmp_path / "table.json").exists(), ran.stderr
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    for line in ran.stdout.splitlines():
        if line.startswith("Warning"):
            warnings.warn(line, stacklevel=1)
    assert [row for row in rows if row["spilled_bytes"] >= 100] == []
    assert ran.returncode == 0, ran.stderr
    assert {row["sm"] for row in rows} == {80, 90, 100, 86, 89, 120}
    assert all(row["shared_bytes"] <= row["shared_limit"] for row in rows)
    assert {row["shared_limit"] for row in rows} == {n << 10 for n in (99, 163, 227)}
    hungriest = [max(row["shared_bytes"] for row in rows if row["sm"] == sm) for sm in (80, 86, 89)]
    assert hungriest[0] == hungriest[1] == hungriest[2]  # they need what sm_80 needs, and so do the others
    updates = [row for row in rows if row["kernel"].startswith("update")]
    assert all(row["vector_loads"] for row in updates)  # 16 bytes at a time
