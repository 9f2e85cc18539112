"""On PyTorch's own engines, in two gloo processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch.distributed

pytestmark = pytest.mark.skipif(
    not (torch.distributed.is_available() and torch.distributed.is_gloo_available()), reason="torch has no gloo here"
)


def run(check, filter, directory, world=2):
    (directory / str(world)).unlink(missing_ok=True)
    worker = Path(__file__).with_name("distributed_worker.py")
    command = [sys.executable, str(worker), check, filter]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(directory)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * world, "\n".join(said)


@pytest.mark.parametrize("filter", ["ema", "ma"])
@pytest.mark.parametrize("check", ["ddp", "accumulation", "fsdp2", "zero"])
def test_two_processes_arrive_where_one_does(check, filter, tmp_path):
    run(check, filter, tmp_path)


@pytest.mark.parametrize("filter", ["ema", "ma"])
def test_a_distributed_checkpoint_is_resharded(filter, tmp_path):
    for world in (2, 1, 2):
        run("checkpoint", filter, tmp_path, world)
