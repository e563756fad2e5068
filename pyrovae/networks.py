"""Encoder and decoder networks, which map tensors to features.

A network is a function of `Sizes` and its settings that returns an encoder and a decoder. If a decoder has an attribute
``output_bias`` with one entry per feature, it is initialised such that the decoder outputs the mean image.
"""

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Annotated, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.distributions import Distribution

from pyrovae.errors import InputError

#: A positive count, with an upper bound against typing errors.
Count = Annotated[int, Field(ge=1, le=10**9)]
#: Number of hidden layers.
Depth = Annotated[int, Field(ge=1, le=1000)]


class Sizes(NamedTuple):
    """Input and output sizes of encoder and decoder.

    Attributes:
        image: event shape of an image, the input of the encoder.
        latent: dimensions of z, the input of the decoder.
        encoder: features of the guide, the output of the encoder.
        decoder: features of the likelihood, the output of the decoder.
    """

    image: torch.Size
    latent: int
    encoder: int
    decoder: int


class MLP(nn.Sequential):
    """A multilayer perceptron with ReLU units, or gated linear units a ⊙ sigmoid(b) (Dauphin et al. 2017).

    Args:
        inputs: event shape of the input; its dimensions are flattened.
        hidden: width of each hidden layer.
        outputs: number of output features.
        gated: whether units are gated.

    Shapes: ``[..., *inputs] → [..., outputs]``, over any leading dimensions.

    Example:
        >>> import torch
        >>> MLP((3, 8, 8), (16, 16), 4)(torch.zeros(5, 3, 8, 8)).shape
        torch.Size([5, 4])
    """

    def __init__(self, inputs: Sequence[int], hidden: Sequence[int], outputs: int, gated: bool = False) -> None:
        self.sizes = (torch.Size(inputs).numel(), *hidden, outputs)
        layers: list[nn.Module] = []
        for fan_in, fan_out in zip(self.sizes, hidden, strict=False):
            layers += [nn.Linear(fan_in, 2 * fan_out), nn.GLU()] if gated else [nn.Linear(fan_in, fan_out), nn.ReLU()]
        super().__init__(*layers, nn.Linear(self.sizes[-2], outputs))
        self.input_dims = len(inputs)
        self.gated = gated

    @property
    def output_bias(self) -> Tensor:
        """Bias of the last layer, ``[outputs]``."""
        layer = self[-1]
        assert isinstance(layer, nn.Linear)
        return layer.bias

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.flatten(-self.input_dims))

    def __repr__(self) -> str:
        return f"{'gated ' if self.gated else ''}MLP({' → '.join(map(str, self.sizes))})"


class Preceded(nn.Module):
    """A network that sees a fixed function of its input, such as log(1 + x) of counts.

    Args:
        function: one without weights.
        network: what takes its values.

    Example:
        >>> import torch
        >>> Preceded(torch.log1p, MLP((3,), (16,), 4))
        MLP(3 → 16 → 4) of log1p(x)
    """

    def __init__(self, function: Callable[[Tensor], Tensor], network: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(self.function(inputs))

    def __repr__(self) -> str:
        return f"{self.network!r} of {self.function.__name__}(x)"


class ConvEncoder(nn.Sequential):
    """Two convolutions with stride 2 and hidden layers, all with ReLU units.

    Args:
        image: channels, height and width of an image; the sides are divisible by 4.
        channels: channels after the first convolution; twice as many after the second, 16 times in a hidden layer.
        outputs: number of output features.
        depth: number of hidden layers.

    Shapes: ``[..., *image] → [..., outputs]``, over any leading dimensions.

    Example:
        >>> import torch
        >>> ConvEncoder((1, 28, 28), 8, 4)(torch.zeros(5, 1, 28, 28)).shape
        torch.Size([5, 4])
    """

    def __init__(self, image: Sequence[int], channels: int, outputs: int, depth: int = 1) -> None:
        colours, height, width = _image(image)
        super().__init__(
            nn.Conv2d(colours, channels, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(channels, 2 * channels, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(2 * channels * height // 4 * width // 4, 16 * channels),
            nn.ReLU(),
            *_hidden(16 * channels, depth - 1),
            nn.Linear(16 * channels, outputs),
        )
        self.image = torch.Size(image)

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs.reshape(-1, *self.image)).reshape(*inputs.shape[:-3], -1)

    def __repr__(self) -> str:
        return f"ConvEncoder({list(self.image)} → {self[-1].out_features}, {self[0].out_channels} channels)"


class ConvDecoder(nn.Sequential):
    """The mirror image of `ConvEncoder`, with transposed convolutions and a separate output bias per feature.

    Args:
        latent: dimensions of z.
        channels: as in `ConvEncoder`.
        outputs: number of output features, a multiple of the number of pixels.
        image: channels, height and width of an image; the sides are divisible by 4.
        depth: number of hidden layers.

    Shapes: ``[..., latent] → [..., outputs]``, over any leading dimensions.

    Raises:
        InputError: the features cannot be divided evenly over the pixels.

    Example:
        >>> import torch
        >>> ConvDecoder(2, 8, 2 * 28 * 28, (1, 28, 28))(torch.zeros(5, 2)).shape
        torch.Size([5, 1568])
    """

    def __init__(self, latent: int, channels: int, outputs: int, image: Sequence[int], depth: int = 1) -> None:
        _, height, width = _image(image)
        if outputs % (height * width):
            raise InputError(f"outputs: expected a multiple of {height} × {width}, got {outputs}")
        inner = (2 * channels, height // 4, width // 4)
        super().__init__(
            nn.Linear(latent, 16 * channels),
            nn.ReLU(),
            *_hidden(16 * channels, depth - 1),
            nn.Linear(16 * channels, torch.Size(inner).numel()),
            nn.ReLU(),
            nn.Unflatten(1, inner),
            nn.ConvTranspose2d(2 * channels, channels, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, outputs // (height * width), kernel_size=4, stride=2, padding=1, bias=False),
            nn.Flatten(),
        )
        self.channels = channels
        self.output_bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = super().forward(inputs.reshape(-1, inputs.shape[-1]))
        return outputs.reshape(*inputs.shape[:-1], -1) + self.output_bias

    def __repr__(self) -> str:
        return f"ConvDecoder({self[0].in_features} → {len(self.output_bias)}, {self.channels} channels)"


def _hidden(width: int, depth: int) -> list[nn.Module]:
    return [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]


def linear(sizes: Sizes) -> tuple[MLP, MLP]:
    """Linear encoder and decoder, without hidden layers."""
    return _mlp(sizes, ())


def mlp(sizes: Sizes, depth: Depth = 1, width: Count = 512) -> tuple[MLP, MLP]:
    """Encoder and decoder with ``depth`` hidden layers of ``width`` ReLU units each."""
    return _mlp(sizes, (width,) * depth)


def gated_mlp(sizes: Sizes, depth: Depth = 2, width: Count = 300) -> tuple[MLP, MLP]:
    """As ``mlp``, with gated linear units: the networks of published results on MNIST (Tomczak & Welling 2018)."""
    return _mlp(sizes, (width,) * depth, gated=True)


def _mlp(sizes: Sizes, hidden: Sequence[int], gated: bool = False) -> tuple[MLP, MLP]:
    return MLP(sizes.image, hidden, sizes.encoder, gated), MLP((sizes.latent,), hidden, sizes.decoder, gated)


def conv(sizes: Sizes, channels: Count = 16, depth: Depth = 1) -> tuple[ConvEncoder, ConvDecoder]:
    """Encoder and decoder with two convolutions and ``depth`` hidden layers; ``channels`` sets the width of both."""
    encoder = ConvEncoder(sizes.image, channels, sizes.encoder, depth)
    return encoder, ConvDecoder(sizes.latent, channels, sizes.decoder, sizes.image, depth)


conv_small = partial(conv, channels=16)
conv_medium = partial(conv, channels=32)
conv_large = partial(conv, channels=64)


def zuko_flows() -> ModuleType:
    """Imports zuko's flows without the side effect of disabling the validation of all distributions."""
    validates = Distribution._validate_args
    from zuko import flows

    Distribution.set_default_validate_args(validates)
    return flows


def _image(shape: Sequence[int]) -> Sequence[int]:
    """Raises InputError unless the sides of an image are divisible by 4."""
    if len(shape) != 3 or shape[1] % 4 or shape[2] % 4:
        raise InputError(f"network: convolutions expect images with sides divisible by 4, got shape {list(shape)}")
    return shape
