"""A device other than the CPU, for machines without one.

Tensors on the device report the device "meta" and are computed on the CPU. As on a GPU, an operation on tensors of two
devices fails, and reading a number or a blocking transfer waits for the device. Such operations are recorded.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE, CPU = torch.device("meta"), torch.device("cpu")
aten = torch.ops.aten
#: Operations that take tensors of both devices: transfers, and indexing with indices on the CPU.
TRANSFERS = frozenset({aten._to_copy.default, aten.copy_.default, aten.index.Tensor})
#: Operations that return a number, or a tensor whose shape depends on one.
SYNCHRONISING = frozenset(
    {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
)


class DeviceTensor(Tensor):
    """A tensor on the device, computed as `on_cpu`."""

    on_cpu: Tensor

    @staticmethod
    def __new__(cls, on_cpu: Tensor) -> "DeviceTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls, on_cpu.shape, on_cpu.stride(), on_cpu.storage_offset(), dtype=on_cpu.dtype, device=DEVICE
        )
        tensor.on_cpu = on_cpu
        return tensor

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec)

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> Any:
        raise AssertionError(f"{function} is called outside the block")


class FakeDevice(TorchDispatchMode):
    """Makes the device available inside the block.

    Attributes:
        waits: operations that waited for the device.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        from_device = any(isinstance(each, DeviceTensor) for each in tensors)
        from_cpu = any(not isinstance(each, DeviceTensor) and each.dim() for each in tensors)
        if from_device and from_cpu and function not in TRANSFERS:
            raise RuntimeError(f"{function}: expected all tensors on one device")
        target = kwargs.get("device")
        if target is not None:
            kwargs["device"] = CPU
        to_device = from_device if target is None else target == DEVICE
        if function is aten.copy_.default:
            to_device = isinstance(args[0], DeviceTensor)
        crosses = (from_device or to_device) and (from_cpu or not (from_device and to_device))
        blocking = function in TRANSFERS and crosses and not kwargs.get("non_blocking")
        if blocking or (from_device and function in SYNCHRONISING):
            self.waits.append(str(function))
        result = function(*tree_map(_on_cpu, args), **tree_map(_on_cpu, kwargs))
        if not to_device:
            return args[0] if function is aten.copy_.default else result
        result = tree_map(lambda each: DeviceTensor(each) if isinstance(each, Tensor) else each, result)
        return return_and_correct_aliasing(function, args, kwargs, result)


def _on_cpu(value: Any) -> Any:
    return value.on_cpu if isinstance(value, DeviceTensor) else value
