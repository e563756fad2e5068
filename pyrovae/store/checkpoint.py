"""Checkpoints of cohorts: their header, how they are loaded and how they are split."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from pyrovae.errors import InputError
from pyrovae.study import Cohort
from pyrovae.system import tensor_file
from pyrovae.system.provenance import Environment

Groups = dict[str, dict[str, Tensor]]


class CheckpointHeader(BaseModel):
    """Metadata of a checkpoint.

    Attributes:
        step: steps done.
        runs: settings of the runs.
        event_shape: shape of an image.
        data_checksum: checksum of the images.
        environments: the environments of the steps, in order.
    """

    model_config = ConfigDict(frozen=True)
    step: int = Field(ge=0)
    runs: list[dict[str, Any]]
    event_shape: list[Annotated[int, Field(ge=1, le=10**6)]] = Field(min_length=1, max_length=3)
    data_checksum: int
    environments: list[Environment]


def load_checkpoint(file: Path, cohort: Cohort) -> tuple[Groups, CheckpointHeader]:
    """Tensors by group and name, and the header, of the checkpoint of a cohort.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged, or belongs to other runs or another version.
    """
    groups, metadata = tensor_file.load(file)
    try:
        header = CheckpointHeader.model_validate(metadata)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{file}: expected a checkpoint of this version of pyrovae, got one with a missing or different '{field}'; "
            "delete it to train these runs again"
        ) from error
    cohort.check(header.runs, file)
    if header.step > cohort.shared.steps:
        raise checkpoint_mismatch(file, "step")
    return groups, header


def checkpoint_mismatch(file: Path, name: str) -> InputError:
    """The error for a checkpoint in which a tensor or a number is missing or wrong."""
    return InputError(
        f"{file}: expected a checkpoint of this cohort, got one whose '{name}' is missing, has another shape or is not "
        "finite; delete it to train these runs again"
    )


def split_checkpoint(file: Path, cohort: Cohort, half: Cohort, target: Path) -> None:
    """Writes the part of a cohort's checkpoint that belongs to one half of the cohort.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: as `load_checkpoint`.
    """
    groups, header = load_checkpoint(file, cohort)
    first = cohort.runs.index(half.runs[0])
    rows = slice(first, first + len(half.runs))

    def select(group: str, tensor: Tensor) -> Tensor:
        if group == "curves":
            return tensor[..., rows] if tensor.ndim == 3 else tensor
        return tensor[rows] if tensor.ndim else tensor

    selected = {group: {name: select(group, each) for name, each in named.items()} for group, named in groups.items()}
    tensor_file.save(target, selected, header.model_copy(update={"runs": half.record()}).model_dump())
