"""Random streams: one independent torch.Generator for each (seed, purpose)."""

from __future__ import annotations

import numpy as np
import torch

from grokfast import checks

MAX_SEED = 2**63 - 1


def generator(seed: int, purpose: str, *extra: int) -> torch.Generator:
    """A CPU generator for one purpose of one run: the same arguments give the same stream in every process.

    Equal seeds with different purposes ("init", "split", "label_noise", ...) give unrelated streams: a change of the
    data split leaves the initialisation alone. `extra` numbers streams within a purpose: an epoch, a layer, a step.

    NumPy's SeedSequence mixes the three. torch's CPU generator keeps 32 bits of any seed, so two streams coincide with
    probability 2^-32: for some pair among 1,000 seeds, about 1 in 10,000.

    Args:
        seed: 0 to 2^63 - 1.
        purpose: what the stream is for, not empty.
        extra: integers, each 0 to 2^32 - 1.

    Raises:
        TypeError: seed or extra is no integer, purpose no string.
        ValueError: seed or extra out of range, purpose empty.
    """
    seed = checks.integer("seed", seed, minimum=0, maximum=MAX_SEED)
    if not isinstance(purpose, str):
        raise TypeError(f"purpose must be a string, got {purpose!r} ({type(purpose).__name__})")
    if not purpose:
        raise ValueError("purpose must not be empty, got ''")
    numbers = [checks.integer("extra", number, minimum=0, maximum=2**32 - 1) for number in extra]
    name = purpose.encode()
    # The length keeps a name apart from the numbers after it: "a", 98 is not "ab".
    sequence = np.random.SeedSequence(seed, spawn_key=(len(name), *name, *numbers))
    return torch.Generator().manual_seed(int(sequence.generate_state(1)[0]))
