"""A transform: the gradient's part along the weights goes. grokfast run quick --filter my_transform:Orthogonal+ema"""

from dataclasses import dataclass

from grokfast import checks
from grokfast.transforms import Transform


@dataclass(frozen=True)
class Orthogonal(Transform):
    """g − share · (w·g)/(w·w) w, tensor by tensor (Prieto et al. 2025, arXiv 2501.04697)."""

    share: float = 1.0
    varies = frozenset({"share"})  # may differ between runs that train together: it comes as a tensor [E, 1]

    def __post_init__(self) -> None:
        checks.Fields(self).real("share", minimum=0, maximum=1)

    def apply(self, grad, weights, state, hyper, layout, step) -> None:
        gradients = layout.views(grad)
        for name, w in layout.views(weights).items():  # [E, *shape] each
            g, w = gradients[name].flatten(1), w.flatten(1)
            along = (w * g).sum(1, keepdim=True) / (w.square().sum(1, keepdim=True) + 1e-30)
            g -= hyper["share"] * along * w
