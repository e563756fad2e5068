"""Images that were rendered once, kept in the platform's cache folder."""

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
    """What ``make`` returns, uint8 of that shape, from the cache if it is there.

    A cache that cannot be read is made anew; one that cannot be written costs a warning.
    """
    path = Path(platformdirs.user_cache_dir("pyrovae")) / "images" / f"{name}.safetensors"
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
    """The images in the cache, if they are there and whole."""
    try:
        groups, _ = tensor_file.load(path)
        images = groups["images"]["all"]
    except FileNotFoundError:
        return None
    except (InputError, KeyError):
        images = None
    if images is None or (images.shape, images.dtype) != (shape, torch.uint8):
        warnings.warn(f"the cache {path} is damaged and is made anew", stacklevel=3)
        return None
    return images
