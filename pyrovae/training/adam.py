"""Adam inside the graph of a step, so that each gradient is used while it is in the cache."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

State = dict[str, Tensor]
#: β₁, β₂ and ε, the defaults of Kingma and Ba.
DECAYS, EPSILON = (0.9, 0.999), 1e-8
#: Moments up to this size change no weight. They are set to zero once in so many steps, in which larger ones fall by no
#: more than a factor of 0.9⁵⁰ = 0.005, to 5e-37.
NEGLIGIBLE, FLUSH_INTERVAL = 1e-34, 50


class Adam(NamedTuple):
    """Adam (Kingma and Ba 2015, Algorithm 1), θ ← θ − α m̂ / (√v̂ + ε).

    It is elementwise, so that one Adam on stacked parameters equals one Adam per run.

    Attributes:
        exp_avg: mean of the gradients m, by parameter.
        exp_avg_sq: mean of their squares v, by parameter.

    Example:
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> Adam.of(params).update_(params, {"w": torch.tensor([3.0, -0.5])}, step_sizes([0.1], step=1))
        >>> params["w"]
        tensor([0.9000, 2.1000])
    """

    exp_avg: State
    exp_avg_sq: State

    @classmethod
    def of(cls, params: State) -> "Adam":
        """Before the first step."""
        return cls(*({name: torch.zeros_like(each) for name, each in params.items()} for _ in range(2)))

    def flush_(self) -> None:
        """Sets negligible moments to zero, before they become denormal numbers, with which a CPU is many times slower.

        Where a gradient is exactly zero, as in a unit that is never active, m falls by a tenth in each step.

        Example:
            >>> adam = Adam({"w": torch.tensor([1e-36, -0.5])}, {"w": torch.tensor([torch.nan, 1e-36])})
            >>> adam.flush_()
            >>> adam.exp_avg["w"], adam.exp_avg_sq["w"]
            (tensor([ 0.0000, -0.5000]), tensor([nan, 0.]))
        """
        for moment in (*self.exp_avg.values(), *self.exp_avg_sq.values()):
            torch.hardshrink(moment, NEGLIGIBLE, out=moment)

    def update_(self, params: State, gradients: State, step_sizes: Tensor) -> None:
        """Updates parameters and moments in place, by operations that a compiler fuses with the gradients.

        Args:
            params: parameters by name, ``[runs, ...]``.
            gradients: gradients by parameter.
            step_sizes: step size of each run, or one for all, and ε at this step, ``[runs + 1]`` or ``[2]``.
        """
        sizes, epsilon = step_sizes[:-1], step_sizes[-1]
        for name, gradient in gradients.items():
            mean = self.exp_avg[name].lerp_(gradient, 1 - DECAYS[0])
            square = self.exp_avg_sq[name].mul_(DECAYS[1]).add_((1 - DECAYS[1]) * gradient * gradient)
            params[name] -= sizes.view(-1, *[1] * (mean.dim() - 1)) * mean / (square.sqrt() + epsilon)

    def update_fused_(self, params: State, gradients: State, step_sizes: Tensor) -> None:
        """Like `update_` by torch's fused kernel, the fastest one on a CPU without compilation."""
        *sizes, epsilon = step_sizes.tolist()
        dense = {name: gradient.contiguous() for name, gradient in gradients.items()}  # the kernel ignores strides
        steps = [torch.tensor(torch.inf, device=step_sizes.device)] * len(gradients)  # for no bias correction
        for run, size in [(slice(None), sizes[0])] if len(sizes) == 1 else list(enumerate(sizes)):
            weights, grads, means, squares = (
                [state[name][run] for name in gradients] for state in (params, dense, self.exp_avg, self.exp_avg_sq)
            )
            adam(
                weights, grads, means, squares, [], steps, fused=True, lr=size, eps=epsilon,
                beta1=DECAYS[0], beta2=DECAYS[1], weight_decay=0, amsgrad=False, maximize=False,
            )  # fmt: skip


def step_sizes(learning_rates: Sequence[float], step: int) -> Tensor:
    """Step sizes and ε that include the bias corrections of step t: α √(1 − β₂ᵗ) / (1 − β₁ᵗ) and ε √(1 − β₂ᵗ).

    Section 2 of Kingma and Ba gives the step size. Inside the graph, both would be computed again for each parameter.

    Args:
        learning_rates: α of each run, or one for all.
        step: t, from 1 on.

    Example:
        >>> step_sizes([0.1], step=1)
        tensor([3.1623e-02, 3.1623e-10])
    """
    first, second = (1 - decay**step for decay in DECAYS)
    return torch.tensor([*(each / first for each in learning_rates), EPSILON]) * second**0.5
