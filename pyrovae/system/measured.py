"""What was measured on this machine, kept in the platform's cache folder."""

import hashlib
import json
import os
import platform
from contextlib import suppress
from pathlib import Path
from typing import Any

import platformdirs
import torch

from pyrovae.system import atomic


class Measured:
    """Values by what they depend on, in addition to the machine and its number of threads.

    Those that cannot be written or read are unknown, without an error: they are only kept for convenience.

    Args:
        folder: of their files, inside the cache folder.
        here: what all of them depend on.
    """

    def __init__(self, folder: str, *here: object) -> None:
        self._folder = Path(platformdirs.user_cache_dir("pyrovae")) / folder
        self._here = [platform.node(), os.cpu_count(), torch.get_num_threads(), *here]

    def save(self, value: Any, *what: Any) -> None:
        """Keeps a value that JSON can hold."""
        with suppress(OSError):
            atomic.write(self._file(what), json.dumps(value).encode())

    def load(self, *what: Any) -> Any:
        """The value that was kept; None if it is unknown."""
        try:
            return json.loads(self._file(what).read_bytes())
        except (OSError, ValueError):
            return None

    def _file(self, what: tuple[Any, ...]) -> Path:
        digest = hashlib.sha256(json.dumps([*self._here, *what]).encode())
        return self._folder / f"{digest.hexdigest()[:16]}.json"
