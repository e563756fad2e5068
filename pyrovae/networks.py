"""Networks: tensors in, features out. No distribution is named here."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """A multilayer perceptron with ReLU units.

    Args:
        inputs: event shape of the input; its dimensions are flattened.
        hidden: width of each hidden layer.
        outputs: number of features that come out.

    Shapes: ``[..., *inputs] → [..., outputs]``, over any leading dimensions.

    Example:
        >>> import torch
        >>> MLP((3, 8, 8), (16, 16), 4)(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 4])
    """

    def __init__(self, inputs: Sequence[int], hidden: Sequence[int], outputs: int) -> None:
        self.sizes = (torch.Size(inputs).numel(), *hidden, outputs)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(self.sizes, self.sizes[1:], strict=False):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(*layers[:-1])
        self.input_dims = len(inputs)

    @property
    def output(self) -> nn.Linear:
        """The last layer."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(-self.input_dims))

    def __repr__(self) -> str:
        return f"MLP({' → '.join(map(str, self.sizes))})"
