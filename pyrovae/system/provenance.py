"""Provenance: code, versions, process and device behind the numbers of a run."""

import hashlib
import os
from collections.abc import Sequence
from functools import cache
from importlib import import_module, metadata
from itertools import pairwise
from pathlib import Path
from platform import node, python_version

from pydantic import BaseModel, ConfigDict

from pyrovae.system.execution import ExecutionMode, Library


class Environment(BaseModel):
    """What training steps depend on in addition to their settings.

    Attributes:
        since: steps done when training went on in this environment.
        matmul: what multiplied float32 matrices on the CPU.
    """

    model_config = ConfigDict(frozen=True)
    since: int
    mode: ExecutionMode
    device: str
    threads: int
    matmul: Library = "blas"
    versions: str

    def as_provenance(self) -> dict[str, str]:
        """All fields except ``since``, as text."""
        return {name: str(value) for name, value in self if name != "since"}


def history(environments: Sequence[Environment]) -> dict[str, str]:
    """What the steps of a training depended on, by name, with all changes in order.

    Example:
        >>> first = Environment(since=0, mode="vmapped", device="cpu", threads=1, versions="1")
        >>> later = first.model_copy(update={"since": 500, "threads": 2})
        >>> history([first, later])
        {'mode': 'vmapped', 'device': 'cpu', 'threads': '1, from step 500 on 2', 'matmul': 'blas', 'versions': '1'}
    """
    provenance = environments[0].as_provenance()
    for before, after in pairwise(environments):
        for name, value in after.as_provenance().items():
            if value != before.as_provenance()[name]:
                provenance[name] += f", from step {after.since:,} on {value}"
    return provenance


def process_name() -> str:
    """Process id and machine."""
    return f"process {os.getpid()} on {node()}"


@cache
def software_versions() -> str:
    """The versions of the packages that numbers depend on, and a checksum of pyrovae's source."""
    pyrovae = f"pyrovae {metadata.version('pyrovae')} (source {_source_checksum()})"
    packages = ("torch", "pyro-ppl", "numpy", "zuko")
    return ", ".join(
        [pyrovae, *(f"{name} {metadata.version(name)}" for name in packages), f"python {python_version()}"]
    )


def _source_checksum() -> str:
    """A checksum of all code but pyrovae.analysis, which computes none of a study's numbers."""
    digest = hashlib.sha256()
    separate = ("analysis", "guides", "models")  # inside pyrovae's folder in a wheel, next to it in a checkout
    for package in ("pyrovae", "pyrovae.guides", "pyrovae.models"):
        folder = Path(str(import_module(package).__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            if package != "pyrovae" or file.relative_to(folder).parts[0] not in separate:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
