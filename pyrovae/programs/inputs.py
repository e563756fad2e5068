"""Checks on the images that a user gives a pair: each mistake is one line."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.distributions import constraints

from pyrovae.data import as_input
from pyrovae.errors import InputError

#: Floats that exceed [0, 1] by less look like a result of rounding.
ROUNDING = 1e-3


def checked(
    x: object, event_shape: Sequence[int] | None, like: Tensor, support: constraints.Constraint | None
) -> Tensor:
    """Images as a program takes them; bytes are scaled to [0, 1].

    Args:
        event_shape: shape of an image; None if it is unknown.
        like: a parameter of the program, for its type and device.
        support: values that a pixel can take; None if it is unknown.

    Raises:
        InputError: they are of another type, shape or device, not finite, or outside the support.

    Example:
        >>> checked(torch.rand(5, 8, 8, 1), (1, 8, 8), torch.zeros(1), None)
        Traceback (most recent call last):
        pyrovae.errors.InputError: x: expected [batch, 1, 8, 8], got [5, 8, 8, 1]: channels last; take x.movedim(-1, 1)
    """
    x = as_tensor("x", x, like)
    if event_shape is not None and x.shape[1:] != torch.Size(event_shape):
        expected = ", ".join(map(str, event_shape))
        raise InputError(f"x: expected [batch, {expected}], got {list(x.shape)}{_cause(x.shape, event_shape)}")
    if not len(x):
        raise InputError("x: expected at least one image, got none")
    if x.device != like.device:
        raise InputError(f"x: expected images on {like.device}, as the pair is, got {x.device}; take x.to(...)")
    if x.dtype == torch.uint8:
        x = as_input(x).to(like.dtype)
    elif not x.is_floating_point() and getattr(support, "is_discrete", False):
        x = x.to(like.dtype)
    if x.dtype != like.dtype:
        integers = "" if x.is_floating_point() else "; integers are pixels only as uint8"
        raise InputError(f"x: expected {_name(like.dtype)} or uint8, got {_name(x.dtype)}; take x.float(){integers}")
    if not (finite := x.isfinite()).all():
        raise InputError(f"x: expected finite numbers, got NaN or ∞ in {int((~finite).flatten(1).any(1).sum())} images")
    if support is not None and not support.check(x).all():
        raise InputError(f"x: {outside(x, support)}")
    return x


def as_tensor(name: str, x: object, like: Tensor) -> Tensor:
    """A tensor, or an array as a tensor, whose floats get the type of ``like``.

    Raises:
        InputError: it is neither, or an array of something else than numbers.
    """
    if isinstance(x, np.ndarray) and x.dtype.kind in "biuf":
        array = np.ascontiguousarray(x, x.dtype.newbyteorder("="))
        x = torch.tensor(array, device=like.device)
        return x.to(like.dtype) if x.is_floating_point() else x
    if not isinstance(x, Tensor):
        raise InputError(f"{name}: expected a tensor or an array of numbers, got {type(x).__name__}")
    return x


def check_count(name: str, number: object) -> None:
    """Raises InputError if a number of draws or images is no integer of at least 1."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < 1:
        raise InputError(f"{name}: expected an integer of at least 1, got {number!r}")


def outside(x: Tensor, support: constraints.Constraint) -> str:
    """What was expected and what would fit, for values outside the support of a likelihood."""
    if explain := getattr(support, "explain", None):
        return explain(x)
    low, high = float(x.min()), float(x.max())
    fractions = x[x != x.round()]
    if support.is_discrete and len(fractions):
        advice = f"give whole numbers, not such as {float(fractions[0]):.3g}, and offsets with offset=True; or"
    elif low >= -ROUNDING and high <= 1 + ROUNDING:
        advice = "the excess looks like rounding, which x.clip(0, 1) removes; or"
    elif -1 <= low < 0 and high <= 1:
        advice = "take (x + 1) / 2 if they are from −1 to 1, or"
    elif low >= 0 and 1 < high <= 255:
        advice = "divide pixels by 255 or give them as uint8, or"
    else:
        advice = "scale them, or"
    bounds = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    expected = f"[{bounds[0]:g}, {bounds[1]:g}]" if None not in bounds else str(support)
    expected = "whole numbers ≥ 0" if support is constraints.nonnegative_integer else f"values in {expected}"
    return (
        f"expected {expected}, the support of the likelihood, got values from {low:.9g} to {high:.9g}; "
        f"{advice} take a likelihood of real numbers such as gaussian_shared"
    )


def _cause(shape: Sequence[int], event_shape: Sequence[int]) -> str:
    if list(shape) == list(event_shape):
        return ": one image without its batch dimension; take x[None]"
    if len(shape) == len(event_shape) + 1 == 4 and list(shape[1:]) == [*event_shape[1:], event_shape[0]]:
        return ": channels last; take x.movedim(-1, 1)"
    if len(event_shape) == 3 and event_shape[0] == 1 and list(shape[1:]) == list(event_shape[1:]):
        return ": grey images without their channel; take x[:, None]"
    return ""


def _name(kind: torch.dtype) -> str:
    return str(kind).removeprefix("torch.")
