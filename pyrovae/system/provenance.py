"""What numbers depend on besides settings: code, versions, the process."""

import hashlib
import os
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from platform import node, python_version


def process_name() -> str:
    """This process, as others know it."""
    return f"process {os.getpid()} on {node()}"


@cache
def software_versions() -> str:
    """The versions that numbers depend on, and a checksum of pyrovae's own source."""
    pyrovae = f"pyrovae {metadata.version('pyrovae')} (source {_checksum_of_source()})"
    packages = ("torch", "pyro-ppl", "numpy", "zuko")
    return ", ".join(
        [pyrovae, *(f"{name} {metadata.version(name)}" for name in packages), f"python {python_version()}"]
    )


def _checksum_of_source() -> str:
    """Tells other code from this; what reads results and draws them makes no numbers."""
    digest = hashlib.sha256()
    apart = ("analysis", "guides", "models")  # which may or may not lie inside pyrovae's folder
    for package in ("pyrovae", "pyrovae.guides", "pyrovae.models"):
        folder = Path(str(import_module(package).__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            if package != "pyrovae" or file.relative_to(folder).parts[0] not in apart:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
