"""The state of runs that train: one file for a cohort at work, and one for each run that is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn

from pyrovae.errors import InputError
from pyrovae.system import tensor_file
from pyrovae.system.provenance import Environment

#: Tensors by group and name, ``[runs, ...]`` each, except for the steps of the learning curves.
Groups = dict[str, dict[str, Tensor]]
#: Prefix of the groups with the state at the first step of the tail, from which a longer run continues.
BRANCH = "branch."
#: Prefix of the groups with the weights that had the lowest loss on validation images.
BEST = "best."
#: What to do about a file that cannot be used.
REMEDY = "delete it, and 'pyrovae run' trains these runs again"


class CheckpointHeader(BaseModel):
    """Metadata of a checkpoint.

    Attributes:
        keys: keys of the runs, in the order of the rows.
        runs: settings of the runs.
        cohorts: for each run, the key of the cohort in which it was trained last.
        step: steps done.
        event_shape: shape of an image.
        data: for each run, the checksum of its images.
        environments: the environments of the steps, in order.
        train_images: number of training images of a run; 0 in files of earlier versions.
        branch_step: the step of the groups whose names begin with `BRANCH`; None if there are none.
    """

    model_config = ConfigDict(frozen=True)
    keys: list[str] = Field(min_length=1)
    runs: list[dict[str, Any]]
    cohorts: list[str]
    step: int = Field(ge=0)
    event_shape: list[Annotated[int, Field(ge=1, le=10**6)]] = Field(min_length=1, max_length=3)
    data: list[int]
    environments: list[Environment]
    train_images: int = 0
    branch_step: int | None = None


#: Fields of the header with an entry for each run.
OF_RUNS = ("keys", "runs", "cohorts", "data")


@dataclass(frozen=True)
class Checkpoint:
    """The state of some runs after the same number of steps.

    Attributes:
        groups: ``params``, ``buffers``, ``adam.exp_avg``, ``adam.exp_avg_sq``, ``record`` of divergence, ``curves``,
            and after the last step ``cached``, the encodings that a longer training would use. With target rates,
            ``multiplier``; where the best weights are kept, `BEST` with ``params`` and so on, and ``best``, their loss
            and step.
    """

    header: CheckpointHeader
    groups: Groups

    @property
    def kept(self) -> Groups:
        """The groups of what is measured: with the best weights in place of the last ones, where they are kept."""
        best = {name.removeprefix(BEST): each for name, each in self.groups.items() if name.startswith(BEST)}
        return self.groups | best

    @classmethod
    def load(cls, file: Path) -> Self:
        """Reads a checkpoint.

        Raises:
            FileNotFoundError: there is no such file.
            InputError: the file is damaged, of another version, or larger than memory.
        """
        groups, metadata = tensor_file.load(file)
        return cls(_header(metadata, file), groups)

    def save(self, file: Path) -> str:
        """Writes the checkpoint, and returns its checksum.

        Raises:
            OSError: the file cannot be written; an earlier file of this name is unchanged.
        """
        return tensor_file.save(file, self.groups, self.header.model_dump())

    def select(self, keys: Sequence[str]) -> Self:
        """The state of some of the runs."""
        rows = [self.header.keys.index(key) for key in keys]
        of_runs = {name: [getattr(self.header, name)[row] for row in rows] for name in OF_RUNS}
        header = self.header.model_copy(update=of_runs)
        return type(self)(header, _mapped(lambda tensor: tensor[rows], self.groups))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The states of several checkpoints at the same step as one."""
        first, *_ = parts
        of_runs = {name: [each for part in parts for each in getattr(part.header, name)] for name in OF_RUNS}
        header = first.header.model_copy(update=of_runs)
        if len(parts) == 1:
            return cls(header, first.groups)
        return cls(header, _mapped(lambda *tensors: torch.cat(tensors), *(part.groups for part in parts)))

    def at_branch(self) -> Self:
        """The state at the first step of the tail, if there is one, otherwise the last."""
        step = self.header.branch_step
        if step is None:
            return self
        groups = {name.removeprefix(BRANCH): each for name, each in self.groups.items() if name.startswith(BRANCH)}
        environments = [each for each in self.header.environments if each.since < step]
        update = {"step": step, "environments": environments, "branch_step": None}
        return type(self)(self.header.model_copy(update=update), groups | {"curves": self.groups["curves"]})


def load_header(file: Path) -> tuple[CheckpointHeader, str]:
    """The header of a checkpoint and its checksum, without reading its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        InputError: the file is damaged, or of another version.
    """
    metadata, checksum = tensor_file.load_metadata(file)
    return _header(metadata, file), checksum


def restore(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Sets the parameters and buffers of a new module; a bank of encodings, which is empty in it, takes any length.

    Raises:
        InputError: a tensor is missing, or has another type or shape, or is not finite.
    """
    for name, tensor in module.state_dict(keep_vars=True).items():
        found = state.get(name)
        if found is None or found.dtype != tensor.dtype or not found.isfinite().all():
            raise checkpoint_mismatch(name)
        if found.shape != (tensor.shape if tensor.numel() else found.shape):
            raise checkpoint_mismatch(name)
        tensor.data = found.clone()


def checkpoint_mismatch(name: str) -> InputError:
    """The error for a checkpoint in which a tensor or a number is missing or wrong."""
    return InputError(
        f"expected the state of these runs, got one whose '{name}' is missing, has another shape or is not finite; "
        "delete their weights, and 'pyrovae run' trains them again"
    )


def _header(metadata: Any, file: Path) -> CheckpointHeader:
    try:
        return CheckpointHeader.model_validate(metadata)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise InputError(
            f"{file}: expected weights of this version of pyrovae, got some with a missing or different '{field}'; "
            f"{REMEDY}"
        ) from error


def _mapped(function: Callable[..., Tensor], *groups: Groups) -> Groups:
    """Applies a function to each tensor that has a row for every run."""
    return {
        group: {
            name: tensor if (group, name) == ("curves", "step") else function(*(each[group][name] for each in groups))
            for name, tensor in named.items()
        }
        for group, named in groups[0].items()
    }
