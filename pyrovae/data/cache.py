"""Images that were rendered once, kept in the platform's cache folder."""

import warnings
from collections.abc import Callable
from pathlib import Path

import platformdirs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pyrovae.files import replacing


def cached(name: str, make: Callable[[], Tensor]) -> Tensor:
    """What ``make`` returns, from the cache if it is there.

    A cache that cannot be read is made anew; one that cannot be written costs a warning.
    """
    path = Path(platformdirs.user_cache_dir("pyrovae")) / f"{name}.safetensors"
    try:
        return load_file(path)["images"]
    except FileNotFoundError:
        pass
    except (OSError, SafetensorError, KeyError) as error:
        warnings.warn(f"the cache {path} is damaged and is made anew: {error}", stacklevel=2)
    images = make()
    try:
        with replacing(path) as beside:
            save_file({"images": images}, beside)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"the cache {path} cannot be written: {error}", stacklevel=2)
    return images
