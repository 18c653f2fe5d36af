"""An ensemble as a teacher: what its members say together, on the device that trains a student.

`ensembles.combination` does the same in NumPy and float64, for everything that is reported; here
it is in torch, since a student asks for every batch that it sees.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ensembles.combination import Combination, Space
from ensembles.errors import EnsembleError
from ensembles.pool import MIN_LOG_PROBABILITY
from ensembles.predictor import active_members
from spaces.transfer import send


@dataclass(frozen=True, kw_only=True, eq=False)
class Teacher:
    """The members of an ensemble on one device, and how their predictions are combined."""

    networks: Sequence[nn.Module]
    """In the order of the combination's weights; in `eval()` mode."""
    combination: Combination

    def __post_init__(self) -> None:
        """Refuse what cannot teach."""
        if reason := explain_unfitness(self.combination):
            raise EnsembleError(reason)
        if len(self.networks) != self.combination.n_members:
            raise EnsembleError(
                f"the combination has {self.combination.n_members} members, "
                f"got {len(self.networks)} networks."
            )

    def __call__(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return the log-probabilities of the ensemble for normalized images.

        The caller decides about gradients and precision; the combination is in float32 always.
        """
        active = active_members(self.combination)
        said = [self.networks[member](images).float().log_softmax(dim=1) for member in active]
        return combine_tensors(self.combination.select(active), torch.stack(said))


def explain_unfitness(combination: Combination) -> str:
    """Return why an ensemble cannot teach, in one sentence; empty if it can."""
    if combination.space != "vote":
        return ""
    return (
        f"{combination.method} cannot teach a student: shares of votes say which class wins, not "
        "how sure the members are of the others; choose another --method."
    )


def combine_tensors(
    combination: Combination, log_probabilities: Float[Tensor, "members n classes"]
) -> Float[Tensor, "n classes"]:
    """Combine the members' predictions as `Combination.combine` does, on their device.

    Args:
        combination: Of any space but votes.
        log_probabilities: Natural logarithms, the members in the order of the weights.

    Returns:
        Normalized log-probabilities.
    """
    normalized = log_probabilities.log_softmax(dim=2).clamp(min=MIN_LOG_PROBABILITY)
    scores = _COMBINERS[combination.space](combination, normalized.log_softmax(dim=2))
    return (scores / combination.temperature).log_softmax(dim=1)


def _on_device(numbers: Sequence[float] | Sequence[Sequence[float]], like: Tensor) -> Tensor:
    """Return numbers where a tensor is, without waiting for a GPU."""
    return send(torch.tensor(numbers, dtype=like.dtype), like.device)


def _mean_probabilities(
    combination: Combination, members: Float[Tensor, "members n classes"]
) -> Float[Tensor, "n classes"]:
    weights = _on_device(combination.weights, members)
    return (members + weights.log()[:, None, None]).logsumexp(dim=0)


def _mean_logarithms(
    combination: Combination, members: Float[Tensor, "members n classes"]
) -> Float[Tensor, "n classes"]:
    # Not `einsum`: under autocast it would run in half precision.
    return (members * _on_device(combination.weights, members)[:, None, None]).sum(dim=0)


def _class_wise_logarithms(
    combination: Combination, members: Float[Tensor, "members n classes"]
) -> Float[Tensor, "n classes"]:
    weights = _on_device(combination.class_weights, members)
    biases = _on_device(combination.class_biases, members)
    return (members * weights[:, None, :]).sum(dim=0) + biases


_COMBINERS: Mapping[
    Space,
    Callable[[Combination, Float[Tensor, "members n classes"]], Float[Tensor, "n classes"]],
] = {
    "probability": _mean_probabilities,
    "logarithm": _mean_logarithms,
    "stack": _class_wise_logarithms,
}
