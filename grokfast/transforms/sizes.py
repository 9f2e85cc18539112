"""How the kernels of an optimizer's step share their work."""

from __future__ import annotations

# Filter and update of many tensors in one launch.
BLOCK, NUM_WARPS = 512, 4  # 4 elements, one 16-byte access, per thread and stream
MAX_REGISTERS = 96  # none spilled; with a smaller number, or left to itself, ptxas spills a few

# Rows of flat gradients and weights that are looked at or copied.
ROW_BLOCK, ROW_CHUNK = 1024, 4096  # elements: at a time, and for one program
MANY = 1 << 20  # elements of all models; of fewer, programs of one block fill a GPU


def chunk_size(total: int) -> int:
    """Elements per program: few while that leaves processors idle, else enough to share the work on the scalars."""
    return BLOCK if total < 2**20 else 8 * BLOCK


def slice_size(window: int) -> int:
    """Elements of a block whose running sum is made anew in one step: every one in 4 windows, 64 at least.

    Of a block, not of a chunk: when an element has its turn does not depend on how many there are in all.
    """
    return max(64, 1 << (-(-BLOCK // (4 * window)) - 1).bit_length())
