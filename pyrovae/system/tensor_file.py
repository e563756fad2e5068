"""Checkpoints: named tensors and text in one safetensors file, never pickled."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parsed
from safetensors.torch import save as serialised
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.system import atomic


def save(path: Path, groups: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Writes tensors by group and name, and facts that JSON can hold.

    Raises:
        OSError: the file cannot be written; what was there before is whole.
    """
    tensors = {
        f"{group}/{name}": tensor.cpu().contiguous()
        for group, named in groups.items()
        for name, tensor in named.items()
    }
    text = json.dumps(facts)
    atomic.write(path, serialised(tensors, {"facts": f"{_checksum(tensors, text)} {text}"}))


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Reads what `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged.
    """
    try:
        # Not mapped into memory: a file that is cut meanwhile would end the process.
        content = path.read_bytes()
        tensors = parsed(content)
        (size,) = struct.unpack("<Q", content[:8])
        checksum, _, text = json.loads(content[8 : 8 + size])["__metadata__"]["facts"].partition(" ")
        if checksum != _checksum(tensors, text):
            raise ValueError("it was changed since it was written")
        facts = json.loads(text)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: expected a checkpoint, but the file is damaged ({reason}); delete it to train its cohort anew"
        ) from error
    groups: dict[str, dict[str, Tensor]] = {}
    for full_name, tensor in tensors.items():
        group, _, name = full_name.partition("/")
        groups.setdefault(group, {})[name] = tensor
    return groups, facts


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
