"""The precision that networks compute in while they are trained."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyrovae.study.grid import Precision

#: What networks are made of.
LAYERS = frozenset(
    {
        functional.linear,
        *(getattr(functional, f"conv{transposed}{n}d") for transposed in ("", "_transpose") for n in (1, 2, 3)),
    }
)


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Has a GPU multiply float32 numbers as they are inside the block, or, for "tf32", rounded to ten bits.

    By itself torch rounds them so in convolutions and not in matrix products.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    # Read in the newer of torch's two ways, which knows what was set in either.
    before = [each.fp32_precision == "tf32" for each in (matmul, convolution.conv)]  # type: ignore[attr-defined]
    matmul.allow_tf32 = convolution.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def autocast_layers(precision: Precision) -> AbstractContextManager[Any]:
    """Has linear layers and convolutions compute in bfloat16 inside the block where ``precision`` says so.

    What they take and return is rounded to eight bits. All between and behind them is in float32: activations, draws,
    densities, and what is added to a weight, so that a distortion of hundreds of nats is not rounded to whole ones.

    Example:
        >>> x, w = torch.tensor([[1.0]]), torch.tensor([[1 + 2**-9]])
        >>> with layers("bfloat16"):
        ...     float(functional.linear(x, w)), float(x @ w)
        (1.0, 1.001953125)
    """
    return _Bfloat16() if precision == "bfloat16" else nullcontext()


class _Bfloat16(TorchFunctionMode):
    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function not in LAYERS:
            return function(*args, **(kwargs or {}))
        with torch.autocast(args[0].device.type, torch.bfloat16, cache_enabled=False):
            return function(*args, **(kwargs or {})).float()
