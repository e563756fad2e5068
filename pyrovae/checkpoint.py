"""Checkpoints: named tensors and text in one safetensors file, never pickled."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.files import replacing


def save(path: Path, groups: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
    """Writes tensors by group and name, and facts that JSON can hold."""
    tensors = {f"{group}/{name}": tensor.cpu() for group, named in groups.items() for name, tensor in named.items()}
    with replacing(path) as beside:
        save_file(tensors, beside, {"facts": json.dumps(facts)})


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any]]:
    """Reads what `save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged.
    """
    groups: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, "pt") as file:
            for full_name in file.keys():  # noqa: SIM118 - it is no mapping
                group, _, name = full_name.partition("/")
                groups.setdefault(group, {})[name] = file.get_tensor(full_name)
            return groups, json.loads(file.metadata()["facts"])
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: expected a checkpoint, but the file is damaged ({reason}); delete it to train its cohort anew"
        ) from error
