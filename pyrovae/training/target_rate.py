"""A target for the rate: β moves until R is where it should be."""

from typing import NamedTuple

import torch
from torch import Tensor

#: How fast log β moves, in step sizes of Adam, where R is twice its target or more.
SPEED = 5.0
#: Within which β moves.
LIMITS = (1e-4, 1e3)
#: Largest distance of a rate from its target, as a share of the target, at which the target counts as reached.
TOLERANCE = 0.05
#: Steps over which the mean and the spread of β decay.
HORIZON = 500


class Multiplier(NamedTuple):
    """β as the Lagrange multiplier of the constraint R = R*, in minimising D, for each of several runs.

    log β ← log β + c α (R / R* − 1), with R the rate of a batch, α the step size of the weights, and the error within
    ±1. β falls while R is too small, and settles where the minimum of D + βR has the rate R* (Rezende and Viola 2018,
    *Taming VAEs*; Shao et al. 2020, *ControlVAE*).

    Attributes:
        target: R*, in nats per image, ``[runs]``.
        beta: β, ``[runs]``, updated in place.
        mean, variance: of log β over the last steps, with weights that decay, ``[runs]``.

    Example:
        >>> one = Multiplier.of(torch.tensor([10.0]), torch.tensor([1.0]))
        >>> one.update_(torch.tensor([12.0]), torch.tensor([0.01]))  # R is too large
        >>> one.beta
        tensor([1.0101])
    """

    target: Tensor
    beta: Tensor
    mean: Tensor
    variance: Tensor

    @classmethod
    def of(cls, target: Tensor, beta: Tensor) -> "Multiplier":
        """Before the first step."""
        return cls(target, beta, beta.log(), torch.zeros_like(beta))

    def update_(self, rate: Tensor, step_sizes: Tensor) -> None:
        """Moves β by one step, in place.

        Args:
            rate: R of the batch of each run, ``[runs]``.
            step_sizes: Adam's step size of each run, ``[runs]``, or of all, ``[1]``.
        """
        error = (rate / self.target - 1).clamp(-1, 1)
        self.beta.mul_((SPEED * step_sizes * error).exp()).clamp_(*LIMITS)
        deviation = self.beta.log() - self.mean
        self.mean.add_(deviation / HORIZON)
        self.variance.add_(deviation.square() / HORIZON).mul_(1 - 1 / HORIZON)

    @property
    def spread(self) -> Tensor:
        """Standard deviation of β over the last steps, ``[runs]``."""
        return self.beta * self.variance.sqrt()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return {"beta": self.beta, "mean": self.mean, "variance": self.variance}
