"""Adam as a part of the graph of a step, so that a gradient is used while it is still in the cache."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.adam import adam

State = dict[str, Tensor]
#: How slowly the moments forget, and what keeps a quotient finite: as Kingma and Ba have it.
DECAYS, EPSILON = (0.9, 0.999), 1e-8


class Adam(NamedTuple):
    """Adam (Kingma and Ba 2015, Algorithm 1), θ ← θ − α m̂ / (√v̂ + ε).

    It works on each element by itself, so one over stacked parameters is one for every run.

    Attributes:
        exp_avg: mean of the gradients m, by parameter.
        exp_avg_sq: mean of their squares v, by parameter.

    Example:
        >>> params = {"w": torch.tensor([1.0, 2.0])}
        >>> Adam.of(params).update_(params, {"w": torch.tensor([3.0, -0.5])}, rates(0.1, step=1))
        >>> params["w"]
        tensor([0.9000, 2.1000])
    """

    exp_avg: State
    exp_avg_sq: State

    @classmethod
    def of(cls, params: State) -> "Adam":
        """Before the first step."""
        return cls(*({name: torch.zeros_like(each) for name, each in params.items()} for _ in range(2)))

    def update_(self, params: State, gradients: State, step_sizes: Tensor) -> None:
        """Renews parameters and moments in place, by operations that a compiler fuses with what made the gradients.

        Args:
            params: by name.
            gradients: by name.
            rates: of this step, ``[2]``.
        """
        for name, gradient in gradients.items():
            mean = self.exp_avg[name].lerp_(gradient, 1 - DECAYS[0])
            square = self.exp_avg_sq[name].mul_(DECAYS[1]).add_((1 - DECAYS[1]) * gradient * gradient)
            params[name] -= step_sizes[0] * mean / (square.sqrt() + step_sizes[1])

    def update_fused_(self, params: State, gradients: State, step_sizes: Tensor) -> None:
        """The same by torch's own kernel, the fastest on a CPU where nothing is compiled. It takes numbers as rates."""
        learning_rate, epsilon = step_sizes.tolist()
        weights, means, squares = (
            [state[name] for name in gradients] for state in (params, self.exp_avg, self.exp_avg_sq)
        )
        slopes = [gradient.contiguous() for gradient in gradients.values()]  # the kernel looks at no strides
        late = [torch.tensor(torch.inf, device=step_sizes.device)] * len(gradients)  # when there is no bias to correct
        adam(
            weights, slopes, means, squares, [], late, fused=True, lr=learning_rate, eps=epsilon,
            beta1=DECAYS[0], beta2=DECAYS[1], weight_decay=0, amsgrad=False, maximize=False,
        )  # fmt: skip


def step_sizes(learning_rate: float, step: int) -> Tensor:
    """Step size and ε of step t, with which the moments need no correction: α √(1 − β₂ᵗ) / (1 − β₁ᵗ) and ε √(1 − β₂ᵗ).

    As at the end of section 2 of Kingma and Ba, where ε is left as it is. Inside the graph they would be computed anew
    for each parameter.

    Args:
        learning_rate: α.
        step: t, 1 for the first.

    Example:
        >>> rates(0.1, step=1)
        tensor([3.1623e-02, 3.1623e-10])
    """
    first, second = (1 - decay**step for decay in DECAYS)
    return torch.tensor([learning_rate / first, EPSILON]) * second**0.5
