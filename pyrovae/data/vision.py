"""torchvision, also beside a torch without the CUDA that its wheels are linked to."""

import sys
from functools import cache
from importlib import import_module
from types import ModuleType

from torch.library import Library


def datasets() -> ModuleType:
    """The module ``torchvision.datasets``.

    Raises:
        ImportError: torchvision is not installed.
        RuntimeError: torchvision does not fit the installed torch in another way than the one mended here.
    """
    try:
        return import_module("torchvision.datasets")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _operators()
    return import_module("torchvision.datasets")


@cache
def _operators() -> Library:
    """Schemas of the compiled operators that torchvision looks for when it is imported; they live as long as this."""
    library = Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library
