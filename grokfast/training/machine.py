"""What figures were measured on."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch


def machine() -> dict[str, Any]:
    """Date, device, threads and versions, as JSON values; nothing that names the machine."""
    from grokfast import __version__

    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        model = next((line.split(":")[1].strip() for line in cpuinfo.open() if line.startswith("model name")), model)
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "device": f"CPU {model}, {os.cpu_count()} processors",
        **_gpu(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "grokfast": __version__,
    }


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {}
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = []
    if shutil.which(query[0]):
        driver = subprocess.run(query, capture_output=True, text=True, check=False).stdout.splitlines()
    major, minor = torch.cuda.get_device_capability()
    found = {
        "gpu": f"{torch.cuda.get_device_name()}, sm_{major}{minor}",
        "driver": driver[0].strip() if driver else "unknown",
        "cuda": torch.version.cuda,
    }
    with suppress(importlib.metadata.PackageNotFoundError):
        found["triton"] = importlib.metadata.version("triton")
    return found
