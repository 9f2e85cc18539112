"""The Step of fully connected layers on a CPU: forward and backward pass written out, without autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfast.models.autograd import Autograd
from grokfast.models.base import PLAIN, Spec
from grokfast.models.runs import Runs

aten = torch.ops.aten
# h of z, written to `out`; then in place of the gradient of h that of z. A relu's h may take the place of z.
ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (partial(torch.clamp_min, min=0), lambda g, h: aten.threshold_backward.grad_input(g, h, 0, grad_input=g)),
    "square": (torch.square, lambda g, z: g.mul_(z).mul_(2)),
    "gelu": (aten.gelu.out, lambda g, z: aten.gelu_backward.grad_input(g, z, grad_input=g)),
    "abs": (torch.abs, lambda g, z: g.mul_(z.sign_())),
}


class Network(NamedTuple):
    """Parameters of one model, or their gradients, as an MLP, a TokenMLP and a PairMLP name them.

    layers: weights [n_out, n_in] and biases, one after the other. A weight None is of a first layer by tables: rows of
    `first` [n_tokens, width], or of the products of `embed` [n_tokens, d] with `first` [width, d].
    """

    embed: list[Tensor]
    first: list[Tensor]
    layers: list[tuple[Tensor | None, Tensor | None]]

    @classmethod
    def of(cls, named: Mapping[str, Any]) -> Network:
        embed = [t for name, t in named.items() if name.startswith("embed")]
        first = [t for name, t in named.items() if name.startswith(("w_", "in_"))]
        layers: list[tuple[Tensor | None, Tensor | None]] = [(None, named.get("b_in"))] if first else []
        weights = [(name, t) for name, t in named.items() if name.endswith("weight")]
        layers += [(t, named.get(f"{name.removesuffix('weight')}bias")) for name, t in weights]
        return cls(embed, first, layers)

    def at(self, parts: Sequence[Tensor]) -> Network:
        """Where this one is of places in `parts`, what is there."""
        places: Any = self
        layers = [tuple(None if i is None else parts[i] for i in layer) for layer in places.layers]
        return Network([parts[i] for i in places.embed], [parts[i] for i in places.first], layers)  # type: ignore[arg-type]

    def pairs(self) -> list[tuple[int, int]]:
        """Which embedding and which first matrix each table is the product of."""
        n = max(len(self.embed), len(self.first))
        return [(i % len(self.embed), i % len(self.first)) for i in range(n)]

    def tables(self) -> Tensor:
        """[n_tables · n_tokens, width], a view where nothing is embedded: tables lie one after the other."""
        if self.embed:
            return torch.cat([self.embed[i] @ self.first[j].T for i, j in self.pairs()])
        rows, width = self.first[0].shape
        return self.first[0].as_strided((len(self.first) * rows, width), (width, 1))


class Dense(Autograd):
    """One model after the other, each with the bits that it has alone; gradients are written where they belong.

    The loss, whichever it is, gives the gradient of the outputs. Dropout is left to autograd.
    What a pass writes stays for the next one, as memory that comes anew from the system costs a fifth of a step.
    """

    def __init__(self, runs: Runs) -> None:
        super().__init__(runs)
        config: Any = runs.spec.model
        self.residual, self.in_place = config.residual, config.activation == "relu"
        self.act, self.act_backward = ACTIVATIONS[config.activation]
        sizes = [shape.numel() for shape in runs.layout.shapes]
        self.sizes = [*sizes, runs.flat.shape[1] - sum(sizes)]
        self.places = Network.of({name: i for i, name in enumerate(runs.layout.names)})
        self.weights = [self._network(row) for row in runs.flat]
        self._held: dict[str, Tensor] = {}
        net, tokens = self.weights[0], runs.spec.data.n_tokens
        n_tables = max(len(net.embed), len(net.first))
        self.offsets = torch.arange(runs.spec.data.seq_len) % n_tables * tokens if n_tables > 1 else None

    @classmethod
    def why_not(cls, spec: Spec) -> str:
        if spec.is_reference:
            return "plain PyTorch is asked for"
        if spec.device.type != "cpu" or spec.kernels is not None:
            return "layers without autograd are a CPU's"
        return "dropout is left to autograd" if spec.has_dropout else ""

    @classmethod
    def words(cls, spec: Spec, obstacles: Sequence[str]) -> tuple[str, str]:
        return PLAIN, "; ".join([*obstacles[-1:], "layer by layer, without autograd"])

    def gradient(
        self, flat: Tensor, grad: Tensor, loss: Tensor, batch: Tensor | None, accuracy: Tensor | None = None
    ) -> None:
        with torch.no_grad():
            self._losses("train", batch, grad, loss, accuracy)

    def measure(self, split: str, flat: Tensor, loss: Tensor, accuracy: Tensor) -> None:
        with torch.no_grad():
            self._losses(split, None, None, loss, accuracy)

    def of_model(self, e: int, split: str, batch: Tensor | None, grad: Tensor | None) -> tuple[Tensor, Tensor]:
        if torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return self.of_model(e, split, batch, grad)
        x, targets = self._shown(e, split, batch, trains=grad is not None)
        x = x if x.data_ptr() % 64 == 0 else x.clone()  # as a product reads it alone
        if self.offsets is not None:
            x = x + self.offsets
        outputs, inputs, hidden = self._forward(self.weights[e], x, trains=grad is not None)
        scheduled = self._of_loss(slice(e, e + 1))
        if grad is None:
            return self.loss(outputs[None], targets[None], **scheduled)
        loss, accuracy, g = self.loss.gradient(outputs[None], targets[None], **scheduled)
        self._backward_pass(self.weights[e], self._network(grad[e]), g[0], inputs, hidden)
        return loss, accuracy

    def _network(self, row: Tensor) -> Network:
        """Of views of a model's row [P]."""
        return self.places.at([t.view(shape) for t, shape in zip(row.split(self.sizes), self.runs.layout.shapes)])

    def _room(self, name: str, n_rows: int, width: int) -> Tensor:
        """[n_rows, width] that a pass may write to."""
        held = self._held.get(name)
        if held is None or len(held) < n_rows:
            held = self._held[name] = self.runs.flat.new_empty(n_rows, width)
        return held[:n_rows]

    def _forward(self, net: Network, x: Tensor, *, trains: bool) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Outputs [N, C], the input of each layer, and what is kept of each hidden one for its activation."""
        inputs, hidden = [x], list[Tensor]()
        *others, last = net.layers
        for i, layer in enumerate(others):
            at = i if trains else i % 2
            z = self._layer(net, layer, x, f"z{at}")
            h = self.act(z, out=z if self.in_place else self._room(f"h{at}", *z.shape))
            x = torch.add(x, h, out=self._room(f"x{at}", *h.shape)) if self.residual and i else h
            inputs.append(x)
            hidden.append(z)
        return self._layer(net, last, x, "outputs"), inputs, hidden

    def _layer(self, net: Network, layer: tuple[Tensor | None, Tensor | None], x: Tensor, name: str) -> Tensor:
        weight, bias = layer
        if weight is not None:
            out = self._room(name, len(x), len(weight))
            return torch.mm(x, weight.T, out=out) if bias is None else torch.addmm(bias, x, weight.T, out=out)
        tables, (first, *others) = net.tables(), x.unbind(1)
        z = torch.index_select(tables, 0, first, out=self._room(name, len(x), tables.shape[1]))
        for column in others:
            z.add_(torch.index_select(tables, 0, column, out=self._room("rows", *z.shape)))
        return z if bias is None else z.add_(bias)

    def _backward_pass(
        self, net: Network, to: Network, g: Tensor, inputs: Sequence[Tensor], hidden: Sequence[Tensor]
    ) -> None:
        """Write the gradients of parameters, `to`, of that of the outputs, g [N, C]."""
        skip: Tensor | None = None  # of what goes past the layer
        for i in reversed(range(len(inputs))):
            (weight, _), (of_weight, of_bias), x = net.layers[i], to.layers[i], inputs[i]
            if of_bias is not None:
                torch.sum(g, 0, out=of_bias)
            if weight is None or of_weight is None:
                return self._to_tables(net, to, g, x)
            torch.mm(g.T, x, out=of_weight)
            if i:
                of_x = self._room(f"g{i % 2}", *x.shape)
                torch.mm(g, weight, out=of_x) if skip is None else torch.addmm(skip, g, weight, out=of_x)
                skip = of_x if self.residual else None
                g = self.act_backward(of_x if skip is None else self._room("g", *x.shape).copy_(of_x), hidden[i - 1])
        return None

    @staticmethod
    def _to_tables(net: Network, to: Network, g: Tensor, index: Tensor) -> None:
        """Add g [N, width] to the rows of the tables that index [N, T] names, in the order of N."""
        n_rows = len((net.embed or net.first)[0])
        table = g.new_empty(len(net.pairs()) * n_rows, g.shape[1]) if net.embed else to.tables()
        table.zero_()
        for column in index.unbind(1):
            table.index_add_(0, column, g)
        if net.embed:
            Dense.through_tables(net, to, table)

    @staticmethod
    def through_tables(net: Network, to: Network, table: Tensor) -> None:
        """Write the gradients of embeddings and of first matrices, whose products tables are, of that of the tables."""
        for k, ((i, j), own) in enumerate(zip(net.pairs(), table.split(len(net.embed[0])))):
            embed, first = net.embed[i], net.first[j]
            torch.addmm(to.embed[i], own, first, beta=int(k != i), out=to.embed[i])
            torch.addmm(to.first[j], own.T, embed, beta=int(k != j), out=to.first[j])
