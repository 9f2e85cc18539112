"""What a step of a pair MLP would ask of a cluster of CTAs that keeps its weights in shared memory: see
docs/cluster-kernel.md, whose figures these are. Nothing of it is written.

python -m benchmarks.prediction.cluster [--ctas 8 4 16] [--products tf32 bf16]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from benchmarks.prediction.devices import H200, Ceilings

SHARED = 227 * 1024  # bytes that a CTA may have
SHARED_RATE = 128  # bytes of shared memory in a cycle of a processor
BETWEEN = 2.65e12  # bytes a second between shared memories, of the whole GPU: Luo et al. 2024, clusters of four
FLOAT = 4


@dataclass(frozen=True)
class Cluster:
    """One step of one model: each of `ctas` CTAs has width / ctas hidden units and their weights, and sees all rows, a
    tile at a time. `padded` classes are a multiple of 8. wgmma takes operands of tf32 as they lie along the sum only,
    so that W_out and dlogits are there twice; those of bf16 either way, beside W_out in fp32."""

    ctas: int = 8
    products: str = "tf32"
    rows: int = 4704
    n_tokens: int = 97
    n_answers: int = 97
    width: int = 512
    tile: int = 64
    warps: int = 8

    @property
    def size(self) -> int:
        """Bytes of what products read."""
        return {"tf32": 4, "bf16": 2}[self.products]

    @property
    def units(self) -> int:
        return self.width // self.ctas

    @property
    def padded(self) -> int:
        return self.n_answers + -self.n_answers % 8

    @property
    def tiles(self) -> int:
        return -(-self.rows // self.tile)

    @property
    def n_parameters(self) -> int:
        return (2 * self.n_tokens + 1) * self.width + self.n_answers * (self.width + 1)

    def clusters(self, ceilings: Ceilings = H200) -> int:
        """At once, if processors could be divided freely; the hardware's groups allow fewer or as many."""
        return ceilings.processors // self.ctas

    def shared(self) -> dict[str, int]:
        """Bytes of a CTA's shared memory."""
        own = self.tile * self.units
        logits = self.tile * self.padded
        return {
            "w_a, w_b, b_in": FLOAT * (2 * self.n_tokens + 1) * self.units,
            "W_out, and for products": (FLOAT + self.size) * self.padded * self.units,
            "gradient of w_b": FLOAT * self.n_tokens * self.units,
            "h, then dz": FLOAT * own,
            "parts of logits": FLOAT * logits,
            "dlogits": {"tf32": 2, "bf16": 1}[self.products] * self.size * logits,
        }

    def flops(self) -> int:
        """Of products, padding included: logits, dh and dW_out."""
        return 3 * 2 * self.tiles * self.tile * self.width * self.padded

    def between(self) -> int:
        """Bytes that arrive from other CTAs: parts of logits for the rows that a CTA adds up, and all dlogits."""
        return (FLOAT + self.size) * self.tiles * self.tile * self.padded * (self.ctas - 1)

    def memory_traffic(self) -> int:
        """Bytes between a CTA and L2: moments, read and written, and weights once in many steps."""
        return 2 * 2 * FLOAT * self.n_parameters // self.ctas

    def through_shared(self) -> int:
        """Bytes that one CTA's shared memory reads and writes in a step."""
        own, logits, weights = self.tile * self.units, self.tile * self.padded, self.units * self.padded
        of_tile = {
            "gather": FLOAT * 2 * own + self.size * own,  # of both tables; h
            "logits": self.size * weights,  # h is in registers
            "parts": FLOAT * 2 * logits,
            "dlogits": {"tf32": 2, "bf16": 1}[self.products] * self.size * logits,
            "dh": self.size * (logits + weights) + FLOAT * own,  # and dz
            "dW_out": self.size * (own + logits),
            "tables": FLOAT * (own + 2 * own),  # dz; the row of w_b's gradient, read and written
        }
        update = FLOAT * (3 + 2) * self.n_parameters // self.ctas
        return self.tiles * sum(of_tile.values()) + update

    def instructions(self) -> dict[str, int]:
        """Of warps, of all CTAs: 128 numbers in four a lane, at least; products for each of four warps."""
        lanes, own, mine = 128, self.tile * self.units, self.tile * self.padded // self.ctas
        m = self.units // 64 or 1
        of_tile = {
            "gather": own // 32 * (2 + 2 + 1 + 1 + 1),  # loads, sums, relu, a store, addresses: number by number
            "products": 4 * (self.units // 8 + m * self.padded // 8 + m * self.tile // 8) + 36,
            "parts": self.tile * self.padded // 64 + self.tile * self.padded // 256,  # two numbers a store
            "softmax": -(-mine // lanes) * self.ctas * (1 + 4) + -(-mine // 32) * 9 + 10 * self.tile // self.ctas,
            "dlogits": -(-mine // lanes) * self.ctas * {"tf32": 1 + 4, "bf16": 1 + 1}[self.products],
            "dz": own // lanes * (1 + 8 + 1),
            "tables": own // lanes * (1 + 4 + 1 + 4 + 1 + 3),
            "barriers": 4 * self.warps,
        }
        found = {name: n * self.tiles * self.ctas for name, n in of_tile.items()}
        return found | {"update": self.n_parameters // lanes * (4 + 3 + 4 * 14)}

    def limits(self, ceilings: Ceilings = H200) -> dict[str, float]:
        """Model-steps a second at most, by what limits them."""
        at_work = self.clusters(ceilings) * self.ctas / ceilings.processors
        shared = self.ctas * self.through_shared() / (ceilings.processors * SHARED_RATE * ceilings.clock)
        return {
            "products": at_work * ceilings.flops[self.products] / self.flops(),
            "instructions": at_work * ceilings.instructions / sum(self.instructions().values()),
            "shared memory": at_work / shared,
            "between shared memories": BETWEEN / self.between(),
            "L2": ceilings.l2 / (self.ctas * self.memory_traffic()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ctas", type=int, nargs="+", default=[8, 4, 16])
    parser.add_argument("--products", choices=("tf32", "bf16"), nargs="+", default=["tf32", "bf16"])
    args = parser.parse_args()
    for one in (Cluster(ctas, products) for products in args.products for ctas in args.ctas):
        total = sum(one.shared().values())
        fits = "" if total <= SHARED else ", which DO NOT FIT"
        print(f"{one.products}, {one.ctas} CTAs of {one.units} hidden units, {one.tiles} tiles of rows")
        print(f"  shared memory of a CTA: {total:,} of {SHARED:,} bytes{fits}: {one.shared()}")
        print(f"  {one.flops() / 1e9:.2f} GFLOP, {one.between() / 1e6:.1f} MB between CTAs")
        print(f"  {one.through_shared() / 1e6:.1f} MB through each shared memory")
        print(f"  {sum(one.instructions().values()):,} instructions of warps: {one.instructions()}")
        for name, most in sorted(one.limits().items(), key=lambda item: item[1]):
            print(f"  at most {most:>9,.0f} model-steps/s by {name}")


if __name__ == "__main__":
    main()
