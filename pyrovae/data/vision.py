"""Imports torchvision, whose wheels are linked against CUDA, with a CPU build of torch as well."""

import sys
from functools import cache
from importlib import import_module
from types import ModuleType

from torch import library


def datasets() -> ModuleType:
    """The module ``torchvision.datasets``.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision is incompatible with the installed torch for another reason.
    """
    try:
        return import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _define_operators()
    return import_module("torchvision.datasets")


@cache
def _define_operators() -> None:
    """Defines, once per process, the schemas of the compiled operators that torchvision needs at import."""
    for name in ("nms", "qnms"):
        library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
