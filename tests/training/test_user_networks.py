"""Batch normalisation and dropout: the numbers of a run depend on its settings alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pyrovae import InputError, Study, run
from pyrovae.runner.folders import merge
from pyrovae.store.checkpoint import Checkpoint
from pyrovae.store.layout import RunFolder
from pyrovae.study import key_of

STUDY = Study(
    name="mine", network="user_networks:normalised", train_images=32, test_images=16, side=16, beta=1, seed=1, steps=5,
    batch_size=8, latent_size=2,
    measure={"images": 16, "outer": 16, "particles": 4, "reconstructions": 4, "probe": 4, "likelihood_images": 4},
)  # fmt: skip


def state(folder: Path, **settings: Any) -> dict[str, Tensor]:
    """Parameters and buffers of the run with seed 1, after its study is trained."""
    study = STUDY.replace(**settings)
    run(study, folder, quiet=True, compile="never")
    (one,) = (each for each in study.runs() if each.seed == 1)
    groups = Checkpoint.load(RunFolder.of(folder, key_of(one)).weights).groups
    return {**groups["params"], **groups["buffers"]}


def assert_equal(states: list[dict[str, Tensor]]) -> None:
    for each in states[1:]:
        assert {name for name, value in each.items() if not torch.equal(value, states[0][name])} == set()


def test_running_statistics_do_not_depend_on_other_seeds(tmp_path: Path) -> None:
    """Nor do the checks before training count as batches."""
    states = [state(tmp_path / str(number), seed=seed) for number, seed in enumerate([1, [0, 1], [1, 0]])]
    assert_equal(states)
    counted = {name: int(value) for name, value in states[0].items() if name.endswith("num_batches_tracked")}
    assert list(counted.values()) == [STUDY.base.steps] * 2


@pytest.mark.parametrize("network", ["normalised", "dropped_out"])
def test_encodings_for_a_prior_neither_drop_out_nor_count_as_batches(network: str, tmp_path: Path) -> None:
    """Whatever the state of torch's generator, and however often learning curves are probed."""
    states = []
    for number, points in enumerate([4, 1]):
        torch.manual_seed(number)
        settings = {"prior": "aggregate", "refresh": 2, "measure.points": points}
        states.append(state(tmp_path / str(number), network=f"user_networks:{network}", **settings))
    assert_equal(states)


def test_runs_that_differ_in_buffers_alone_are_not_merged(tmp_path: Path) -> None:
    for part in ("one", "two"):
        state(tmp_path / part)
    file = RunFolder.of(tmp_path / "two", key_of(STUDY.runs()[0])).weights
    other = Checkpoint.load(file)
    other.groups["buffers"]["guide.encoder.1.1.running_mean"] += 1
    other.save(file)
    with pytest.raises(InputError, match="after 5 steps with different weights"):
        merge([tmp_path / "one", tmp_path / "two"], tmp_path / "both")
