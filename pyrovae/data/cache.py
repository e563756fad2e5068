"""A cache of rendered images in the platform's cache folder."""

import warnings
from collections.abc import Callable
from pathlib import Path

import filelock
import platformdirs
import torch
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.system import tensor_file


def cached(name: str, shape: torch.Size, make: Callable[[], Tensor]) -> Tensor:
    """Images from the cache, or else from ``make``, which are then cached; uint8 of the given shape.

    A damaged cache is replaced. A cache that cannot be written only causes a warning.
    """
    path = Path(platformdirs.user_cache_dir("pyrovae")) / "images" / f"{name}-{tensor_file.FORMAT}.safetensors"
    if (images := _read(path, shape)) is not None:
        return images
    images = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(path.parent / ".lock"):
            tensor_file.save(path, {"images": {"all": images}}, {})
    except OSError as error:
        warnings.warn(f"the cache {path} cannot be written: {error}", stacklevel=2)
    return images


def _read(path: Path, shape: torch.Size) -> Tensor | None:
    """The cached images; None if there are none, or with a warning if they are damaged."""
    try:
        groups, _ = tensor_file.load(path)
        images = groups["images"]["all"]
    except OSError:  # there is none, or the folder cannot be read
        return None
    except (InputError, KeyError):
        images = None
    if images is None or (images.shape, images.dtype) != (shape, torch.uint8):
        warnings.warn(f"the cache {path} is damaged and will be replaced", stacklevel=3)
        return None
    return images
