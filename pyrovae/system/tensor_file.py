"""Named tensors and metadata in one safetensors file with a checksum; nothing is pickled."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as deserialise
from safetensors.torch import save as serialise
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.system import atomic


def save(path: Path, groups: Mapping[str, Mapping[str, Tensor]], metadata: Mapping[str, Any]) -> None:
    """Writes tensors by group and name, and metadata that JSON can represent.

    Raises:
        OSError: the file cannot be written; an earlier file of this name is unchanged.
    """
    tensors = {
        f"{group}/{name}": tensor.cpu().contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    text = json.dumps(metadata)
    # "facts" is the key in the file format.
    atomic.write(path, serialise(tensors, {"facts": f"{_checksum(tensors, text)} {text}"}))


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Reads the tensors and the metadata that `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged.
    """
    try:
        # Not memory-mapped: truncating a mapped file would kill the process.
        content = path.read_bytes()
        tensors = deserialise(content)
        (size,) = struct.unpack("<Q", content[:8])
        checksum, _, text = json.loads(content[8 : 8 + size])["__metadata__"]["facts"].partition(" ")
        if checksum != _checksum(tensors, text):
            raise ValueError("it was changed after it was written")
        metadata = json.loads(text)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: expected a checkpoint, but the file is damaged ({reason}); delete it to train these runs again"
        ) from error
    groups: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: str) -> str:
    digest = hashlib.sha256(metadata.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
