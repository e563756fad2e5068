"""What other libraries expect of the environment at import: a home folder, and a backend that matplotlib knows."""

import atexit
import os
import shutil
import tempfile
import warnings
from pathlib import Path


def prepare() -> None:
    """Replaces a missing home folder by a temporary one, with a warning, and an unknown backend by Agg."""
    try:
        Path.home()
    except RuntimeError:
        os.environ["HOME"] = home = tempfile.mkdtemp(prefix="pyrovae-")
        atexit.register(shutil.rmtree, home, ignore_errors=True)
        warnings.warn(
            f"expected a home folder for caches, got a user without one; they are in {home} until the end: "
            "set HOME to keep them",
            stacklevel=3,
        )
    if os.environ.get("MPLBACKEND", "agg") != "agg":
        try:
            import matplotlib  # noqa: F401
        except ValueError:
            os.environ["MPLBACKEND"] = "agg"
