"""What a network learns besides labels: how sure a teacher is of every class."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True, eq=False)
class Teaching:
    """A teacher, and how much of the loss it decides."""

    teacher: Callable[[Tensor], Tensor]
    """From normalized, varied and mixed images to log-probabilities, on the images' device. It
    draws nothing at random: else a training that goes on would not equal an unbroken one."""
    temperature: float
    """Divides the logarithms of both sides before they are compared: above 1, the classes that
    are wrong but alike count for more."""
    share: float
    """Of the loss; the labels decide the rest."""

    def loss(
        self,
        hard: Float[Tensor, ""],
        logits: Float[Tensor, "n classes"],
        told: Float[Tensor, "n classes"],
    ) -> Float[Tensor, ""]:
        """Return the loss that a student is trained on.

        Args:
            hard: The loss against the labels.
            logits: What the student says.
            told: The teacher's log-probabilities for the same images.

        Source:
            Hinton et al. 2015, "Distilling the knowledge in a neural network". The square of the
            temperature keeps the size of the gradients; the divergence differs from the paper's
            cross-entropy by a constant, and is 0 where the student says what the teacher does.
        """
        divergence = F.kl_div(
            (logits / self.temperature).log_softmax(dim=1),
            (told / self.temperature).log_softmax(dim=1),
            reduction="batchmean",
            log_target=True,
        )
        return (1 - self.share) * hard + self.share * self.temperature**2 * divergence

    @torch.no_grad()
    def ask(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Return what the teacher says, without gradients and in float32."""
        return self.teacher(images).float()
