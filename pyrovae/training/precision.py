"""The precision of networks during training."""

import platform
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pyrovae.study import Precision

#: Functions that round their inputs and outputs in bfloat16.
LAYERS = frozenset(
    {
        functional.linear,
        *(getattr(functional, f"conv{transposed}{n}d") for transposed in ("", "_transpose") for n in (1, 2, 3)),
    }
)


def emulates_bfloat16(device: torch.device) -> bool:
    """Whether a device is an x86 CPU without instructions for bfloat16, on which it is slower than float32."""
    known = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return device.type == "cpu" and platform.machine() in ("x86_64", "AMD64") and not known


@contextmanager
def matmul_precision(precision: Precision) -> Iterator[None]:
    """Sets whether a GPU multiplies float32 numbers exactly inside the block or, for "tf32", rounded to ten bits.

    By default, torch rounds them in convolutions but not in matrix products.
    """
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    # The newer of torch's two interfaces, because it sees what was set through either.
    before = [each.fp32_precision == "tf32" for each in (matmul, convolution.conv)]  # type: ignore[attr-defined]
    matmul.allow_tf32 = convolution.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before


def autocast_layers(precision: Precision) -> AbstractContextManager[Any]:
    """Computes linear layers and convolutions in bfloat16 inside the block if ``precision`` is "bfloat16".

    Their inputs and outputs are rounded to eight bits. Everything else is in float32: activations, draws, densities and
    updates of weights, so that a distortion of hundreds of nats is not rounded to integers.

    Example:
        >>> x, w = torch.tensor([[1.0]]), torch.tensor([[1 + 2**-9]])
        >>> with autocast_layers("bfloat16"):
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
