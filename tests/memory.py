"""How much memory tensors take that are made in a block of code."""

import weakref
from functools import partial

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Alive(TorchDispatchMode):
    """Bytes that are alive, `now`, of what was made inside, and the most that were at once, `most`."""

    def __init__(self):
        super().__init__()
        self.alive, self.now, self.most = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_leaves(out):
            storage = t.untyped_storage() if isinstance(t, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.alive:
                self.alive[storage._cdata] = weakref.ref(storage, partial(self.gone, storage._cdata, storage.nbytes()))
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
        return out

    def gone(self, number, size, _):
        del self.alive[number]
        self.now -= size
