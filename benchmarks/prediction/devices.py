"""What GPUs can do at most: rates of datasheets and of others' measurements, and what each of their processors has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Ceilings(NamedTuple):
    """Of a GPU: seconds, bytes, bytes and operations per second.

    launch: what a launch takes in a CUDA graph that does nothing; cache: bytes of L2 that are in use again and again;
    memory, l2: of the whole GPU, and sustained: of memory what loads and stores reach; port: between one processor and
    L2; flops: of the products of each precision.
    Of one processor: clock in Hz; issue: instructions of warps in a cycle; banks: bytes of shared memory in a cycle;
    registers, threads and programs at once.
    """

    name: str
    launch: float
    processors: int
    cache: float
    memory: float
    sustained: float
    l2: float
    port: float
    flops: Mapping[str, float]
    clock: float
    issue: int = 4
    banks: int = 128
    registers: int = 65536
    threads: int = 2048
    programs: int = 32

    @property
    def instructions(self) -> float:
        """Of warps in a second, where every scheduler issues one in every cycle: no kernel executes more."""
        return self.processors * self.issue * self.clock

    @property
    def shared(self) -> float:
        """Bytes of shared memory in a second, where every bank gives or takes 4 in every cycle."""
        return self.processors * self.banks * self.clock


# Datasheet: NVIDIA H200 Tensor Core GPU (SXM). TF32 and BF16 are given there with sparsity, which nothing here has.
# Measured by others: github.com/te42kyfo/gpu-benches, files h200*.txt. Of one processor: NVIDIA's H100 white paper and
# tuning guide; the clock is the highest boost.
H200 = Ceilings(
    name="H200",
    launch=2.3e-6,  # gpu-small-kernels, in a graph: 2.34 µs for each of 10,000 kernels over 64 KB, one after the other
    processors=132,
    cache=44e6,  # gpu-l2-cache: of the 50 MB; more than that, and loads become slower
    memory=4.8e12,  # datasheet
    sustained=3.9e12,  # gpu-l2-cache: loads of 80 MB and more; gpu-stream: stores
    l2=9.7e12,  # gpu-l2-cache: loads of 20 to 40 MB that all processors share
    port=127e9,  # ASSUMED: 64 bytes in each cycle
    flops={"ieee": 67e12, "tf32x3": 494.5e12, "tf32": 494.5e12, "bf16": 989.5e12},  # datasheet; three tf32 count as 3
    clock=1.98e9,
)

# The same processors, and as many, with other memory. ASSUMED: that it reaches the same share of its datasheet.
H100 = H200._replace(name="H100", memory=3.35e12, sustained=3.35e12 * H200.sustained / H200.memory)

DEVICES = {one.name: one for one in (H200, H100)}
