"""A device that is not the CPU, for machines that have none.

Its tensors say that they are on the device "meta", and hold numbers that the CPU computes. As on a GPU, operations on
tensors of two devices fail; and to look at a number is to wait for the device, as it is to bring one there unless the
call says that it need not wait. What waits is written down.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

PLACE, CPU = torch.device("meta"), torch.device("cpu")
aten = torch.ops.aten
#: What takes numbers from one device to the other; rows of a tensor may be named by indices on the CPU.
MOVES = frozenset({aten._to_copy.default, aten.copy_.default, aten.index.Tensor})
#: What ends in a number, or in a tensor whose shape depends on one.
ASKS = frozenset(
    {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
)


class There(Tensor):
    """A tensor on the device."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "There":
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=PLACE
        )
        made.held = held
        return made

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} is called outside of the block")


class Elsewhere(TorchDispatchMode):
    """Inside the block there is the device.

    Attributes:
        waited: operations that waited for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        there = any(isinstance(each, There) for each in tensors)
        here = any(not isinstance(each, There) and each.dim() for each in tensors)
        if there and here and function not in MOVES:
            raise RuntimeError(f"{function}: expected all tensors on one device")
        place = kwargs.get("device")
        if place is not None:
            kwargs["device"] = CPU
        away = there if place is None else place == PLACE
        if function is aten.copy_.default:
            away = isinstance(args[0], There)
        crosses = (there or away) and (here or not (there and away))
        if (there and function in ASKS) or (function in MOVES and crosses and not kwargs.get("non_blocking")):
            self.waited.append(str(function))
        made = function(*tree_map(_held, args), **tree_map(_held, kwargs))
        if not away:
            return args[0] if function is aten.copy_.default else made
        made = tree_map(lambda each: There(each) if isinstance(each, Tensor) else each, made)
        return return_and_correct_aliasing(function, args, kwargs, made)


def _held(value: Any) -> Any:
    return value.held if isinstance(value, There) else value
