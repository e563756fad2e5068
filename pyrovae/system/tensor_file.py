"""Named tensors and metadata in one safetensors file with a checksum; nothing is pickled."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.system import atomic
from pyrovae.system.memory import check_memory

#: Version of the layout of these files.
FORMAT = 2

#: Most bytes of a header, as safetensors has it.
MAX_HEADER = 100_000_000


def save(path: Path, groups: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> str:
    """Writes tensors by group and name, and metadata that JSON can represent; returns their checksum.

    Raises:
        OSError: the file cannot be written; an earlier file of this name is unchanged.
    """
    tensors = {
        f"{group}/{name}": tensor.cpu().contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    text = json.dumps(metadata)
    checksum = _checksum(tensors, text)
    facts = f"{checksum} {text}"
    # One entry, because safetensors writes several in any order.
    atomic.write(path, serialise(tensors, {"facts": f"{_sha256(facts)} {facts}"}))
    return checksum


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Reads the tensors and the metadata that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged, or larger than the free memory.
    """
    check_memory(2 * path.stat().st_size, str(path))
    with _damage(path):
        # Not memory-mapped: truncating a mapped file would kill the process.
        content = path.read_bytes()
        tensors = deserialise(content)
        (size,) = struct.unpack("<Q", content[:8])
        checksum, _, text = _facts(content[8 : 8 + size])
        if checksum != _checksum(tensors, text):
            raise ValueError("it was changed after it was written")
        metadata = json.loads(text)
    groups: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups, metadata


def load_metadata(path: Path) -> tuple[dict[str, Any], str]:
    """Reads the metadata and the checksum that `save` wrote, without reading and verifying the tensors.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged.
    """
    with _damage(path), path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > path.stat().st_size:
            raise ValueError("it is truncated")
        if size > MAX_HEADER:
            raise ValueError(f"its header has {size:,} bytes")
        checksum, _, text = _facts(file.read(size))
        return json.loads(text), checksum


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Turns the errors of a damaged file into one line."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, struct.error) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: expected weights, but the file is damaged ({reason}); delete it to train these runs again"
        ) from error


def _facts(header: bytes) -> tuple[str, str, str]:
    """The checksum of the tensors, and the metadata."""
    own, _, facts = json.loads(header)["__metadata__"]["facts"].partition(" ")
    if own != _sha256(facts):
        raise ValueError("it was changed after it was written")
    return facts.partition(" ")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
