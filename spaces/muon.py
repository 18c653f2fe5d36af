"""The optimizer Muon: convolutions take steps of orthogonal matrices."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

_CONVOLUTION_MOMENTUM = 0.6
_N_ITERATIONS = 3
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """SGD with Nesterov's momentum whose steps for some groups are made orthogonal.

    Groups with `orthogonal` hold weights of convolutions: before each step they are scaled to
    unit length for each filter on average, so that their rate is a share of their size, and weight
    decay means nothing to them. All other groups are trained by plain SGD.

    Source:
        Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks", with the
        momentum, iterations and scaling of the same author's `airbench94_muon.py`.
    """

    def __init__(self, groups: list[dict[str, Any]], *, momentum: float) -> None:
        super().__init__(groups, {"momentum": momentum, "orthogonal": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """Move all weights that have gradients."""
        for group in self.param_groups:
            weights = [each for each in group["params"] if each.grad is not None]
            if not weights:
                continue
            momentum = _CONVOLUTION_MOMENTUM if group["orthogonal"] else group["momentum"]
            decay = 0.0 if group["orthogonal"] else group["weight_decay"]
            steps = self._steps(weights, momentum, decay)
            if group["orthogonal"]:
                for weight, step in zip(weights, steps, strict=True):
                    weight.mul_(len(weight) ** 0.5 / weight.norm())
                    step.copy_(orthogonalized(step.flatten(1)).view_as(step))
            torch._foreach_add_(weights, steps, alpha=-group["lr"])

    def _steps(self, weights: list[Tensor], momentum: float, decay: float) -> list[Tensor]:
        """Return Nesterov's steps, of length 1 rate, and keep the momentum for the next ones."""
        gradients = [each.grad for each in weights if each.grad is not None]
        if decay:
            gradients = list(torch._foreach_add(gradients, weights, alpha=decay))
        for weight in weights:
            if "momentum_buffer" not in self.state[weight]:
                self.state[weight]["momentum_buffer"] = torch.zeros_like(weight)
        moving = [self.state[weight]["momentum_buffer"] for weight in weights]
        torch._foreach_mul_(moving, momentum)
        torch._foreach_add_(moving, gradients)
        return list(torch._foreach_add(gradients, moving, alpha=momentum))


def orthogonalized(matrix: Float[Tensor, "rows columns"]) -> Float[Tensor, "rows columns"]:
    """Bring the singular values of a matrix, but for the smallest ones, to between 0.6 and 1.3.

    By three of Newton and Schulz's iterations, which know no decomposition and so are fast on any
    device; in bf16 on a GPU, as in the source.
    """
    a, b, c = _COEFFICIENTS
    found = matrix.to(torch.bfloat16) if matrix.is_cuda else matrix
    found = found / (found.norm() + 1e-7)
    wide = found if found.shape[0] <= found.shape[1] else found.T
    for _ in range(_N_ITERATIONS):
        product = wide @ wide.T
        wide = a * wide + (b * product + c * product @ product) @ wide
    result: Tensor = wide if found.shape[0] <= found.shape[1] else wide.T
    return result.to(matrix.dtype)
