"""Diverged runs: when a loss, a weight or a moment stopped being finite, and the return to the last good checkpoint."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


class Divergence:
    """Which runs of a cohort have diverged.

    Attributes:
        at: steps done when a run diverged, ``[runs]``; −1 if it has not.
        last_loss: last finite loss of each run, ``[runs]``.
    """

    def __init__(self, runs: int) -> None:
        self.at = torch.full((runs,), -1)
        self.last_loss = torch.full((runs,), float("nan"))

    @property
    def rows(self) -> Tensor:
        """Indices of the diverged runs."""
        return (self.at >= 0).nonzero().flatten()

    def update(self, losses: Tensor, states: Iterable[Tensor], step: int) -> None:
        """Marks the runs that diverged during the last steps.

        If the square of a gradient overflows, Adam never moves that weight again, though losses and weights are finite.

        Args:
            losses: of the last steps, ``[steps, runs]``.
            states: weights and second moments, ``[runs, ...]`` each.
            step: steps done.
        """
        losses = losses.cpu()
        first = step - len(losses)
        healthy = torch.stack([state.reshape(len(state), -1).isfinite().all(1) for state in states]).all(0).cpu()
        for run in (self.at < 0).nonzero().flatten().tolist():
            finite = losses[:, run].isfinite()
            if not finite.all():
                self.at[run] = first + int(finite.int().argmin())
            elif not healthy[run]:
                self.at[run] = step
            good = losses[: self.at[run] - first, run] if self.at[run] >= 0 else losses[:, run]
            if len(good):
                self.last_loss[run] = good[-1]


def restore_rows(
    states: Mapping[str, Mapping[str, Tensor]], rows: Tensor, saved: Mapping[str, Mapping[str, Tensor]]
) -> None:
    """Overwrites the states of some runs with saved ones."""
    for group, tensors in states.items():
        for name, tensor in tensors.items():
            tensor[rows] = saved[group][name][rows].to(tensor.device)
