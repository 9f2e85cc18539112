"""Every shipped Triton kernel compiles for GPUs that are not here, and spills no register."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(sys.platform != "linux", reason="Triton compiles on Linux only")
def test_no_kernel_spills(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.resources", "--out", str(tmp_path / "table.json")]
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (tmp_path / "table.json").exists(), ran.stderr
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [row for row in rows if row["spilled_bytes"]] == []
    assert ran.returncode == 0, ran.stderr
    assert {row["sm"] for row in rows} == {80, 90, 100}
    kilobytes = {
        80: 99,
        90: 227,
        100: 227,
    }  # of shared memory a program may have; 99 on sm_86 and sm_89, which run sm_80
    assert all(row["shared_bytes"] <= 1024 * kilobytes[row["sm"]] for row in rows)
    updates = [row for row in rows if row["kernel"].startswith("update")]
    assert all(row["vector_loads"] for row in updates)  # 16 bytes at a time
