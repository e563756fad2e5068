"""A study grows in its folder: what is missing is trained, and what is there stays as it is."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import STORED, contents, no_drawing

from pyrovae import InputError, Results, Run, Study, open_results, run
from pyrovae.store.layout import RunFolder
from pyrovae.study import key_of

#: One depth with two β, which train together.
SMALL = STORED.replace(depth=1, steps=40, checkpoint_every=15)
Trained = list[tuple[frozenset[str], int]]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished study; tests read it."""
    folder = tmp_path_factory.mktemp("small") / "study"
    with no_drawing():
        run(SMALL, folder, compile="never", quiet=True)
    return folder


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """A copy of its folder; tests change it."""
    return Path(shutil.copytree(small, tmp_path / "study"))


def trained_to(study: Study, folder: Path) -> Results:
    return run(study, folder, compile="never", quiet=True)


def keys(study: Study) -> set[str]:
    return {key_of(run) for run in study.resolved().runs()}


def numbers(results: Results) -> dict[str, xr.Dataset]:
    """What was measured, without facts about the runs."""
    return {name: node.to_dataset() for name, node in results.tree.children.items() if name not in ("runs", "theory")}


def assert_same_numbers(one: Results, other: Results) -> None:
    theirs = numbers(other)
    assert numbers(one).keys() == theirs.keys()
    for name, values in numbers(one).items():
        xr.testing.assert_identical(values, theirs[name])


# More runs


@pytest.mark.parametrize(
    "more",
    [
        {"seed": [0, 1]},
        pytest.param({"beta": [0.01, 0.1, 1]}, marks=pytest.mark.long),
        pytest.param({"depth": [1, 2]}, marks=pytest.mark.long),
        pytest.param({"data_seed": [0, 1]}, marks=pytest.mark.long),
        {"seed": [0, 1], "data_seed": "seed"},
        {"prior": ["standard_normal", "mixture(components=3)"]},
        {"seed": [1, 0], "beta": [1, 0.1, 4], "depth": [2, 1]},
    ],
    ids=str,
)
def test_only_new_runs_are_trained(more: dict[str, Any], folder: Path, trained: Trained) -> None:
    wider, before = SMALL.replace(**more), contents(folder / "runs")
    results = trained_to(wider, folder)
    assert frozenset().union(*(names for names, _ in trained)) == keys(wider) - keys(SMALL)
    assert {step for _, step in trained} == {0}
    after = contents(folder / "runs")
    assert {name: after[name] for name in before} == before
    assert set(results.tree["runs/status"].values.flat) == {"done"}
    assert results.study == open_results(folder).study == wider.resolved()
    assert not list(folder.glob("training/*"))


@pytest.mark.long
def test_new_runs_are_those_of_a_larger_study(folder: Path, tmp_path: Path) -> None:
    """Within rounding: they train in another cohort."""
    wider = SMALL.replace(seed=[0, 1])
    grown, whole = trained_to(wider, folder), trained_to(wider, tmp_path / "whole")
    for each in wider.runs():
        ours, theirs = (results.pair(beta=each.beta, seed=each.seed).state_dict() for results in (grown, whole))
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("prior", "pixels"),
    [
        ("standard_normal", "continuous"),
        pytest.param("aggregate_leave_one_out", "dynamic", marks=pytest.mark.long),
        pytest.param("standard_normal", "dynamic", marks=pytest.mark.long),
        pytest.param("aggregate_leave_one_out", "continuous", marks=pytest.mark.long),
    ],
)
def test_training_sets_share_a_cohort_and_change_no_run(prior: str, pixels: str, tmp_path: Path) -> None:
    """Within rounding, each run is that of a study with its own training set alone, and is measured on that."""
    study = SMALL.replace(beta=[0.1, 1], data_seed=[0, 5], prior=prior, pixels=pixels)
    together = trained_to(study, tmp_path / "together")
    assert len(together.tree["runs/cohort"].to_dataset().to_array().to_series().unique()) == 1
    for data_seed in (0, 5):
        alone = trained_to(study.replace(data_seed=data_seed), tmp_path / str(data_seed))
        theirs = together.tree.sel(data_seed=data_seed)
        for group in ("rate_distortion", "information", "memorisation", "difficulty", "curves"):
            ours = alone.tree[group].to_dataset().reset_coords(drop=True)
            xr.testing.assert_allclose(ours, theirs[group].to_dataset().reset_coords(drop=True), rtol=1e-3, atol=1e-2)
    first, second = (together.tree["rate_distortion/distortion"].sel(data_seed=each, split="train") for each in (0, 5))
    assert (abs(first - second) > 1).all()


def test_weights_of_other_training_images_are_not_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, folder = SMALL.replace(data_seed=[0, 1]), tmp_path / "study"
    trained_to(study, folder)
    monkeypatch.setattr("pyrovae.data._redrawn", lambda drawable, test, data_seed: drawable.nonzero().squeeze(1))
    with pytest.raises(InputError, match="expected the images that these runs began with"):
        trained_to(study.replace(steps=60), folder)


# More steps


@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"pixels": "dynamic", "learning_rate_schedule": "tail"}, marks=pytest.mark.long),
        pytest.param({"prior": "aggregate_subsampled", "components": 20, "refresh": 7}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_continued_training_equals_one_in_one_go_bitwise(
    settings: dict[str, Any], tmp_path: Path, trained: Trained
) -> None:
    study = SMALL.replace(**settings)
    for steps in (40, 70, 100):
        grown = trained_to(study.replace(steps=steps), tmp_path / "grown")
    whole = trained_to(study.replace(steps=100), tmp_path / "whole")
    tail = "learning_rate_schedule" in settings
    assert [step for _, step in trained] == [0, *((32, 56) if tail else (40, 70)), 0]
    assert contents(grown.folder, "weights.safetensors") == contents(whole.folder, "weights.safetensors")
    assert contents(grown.folder, "run.yaml") == contents(whole.folder, "run.yaml")
    assert_same_numbers(grown, whole)
    assert (grown.tree["runs/step"] == 100).all()
    assert grown.images().identical(whole.images())


@pytest.mark.long
def test_continued_training_keeps_compiled_steps_bitwise(tmp_path: Path) -> None:
    study, folders = SMALL.replace(beta=1), (tmp_path / "grown", tmp_path / "whole")
    run(study, folders[0], compile="always", quiet=True)
    grown = run(study.replace(steps=100), folders[0], quiet=True)
    whole = run(study.replace(steps=100), folders[1], compile="always", quiet=True)
    assert contents(folders[0], "weights.safetensors") == contents(folders[1], "weights.safetensors")
    assert_same_numbers(grown, whole)
    assert grown.tree["runs/mode"].item() == "compiled"


def test_runs_and_steps_grow_at_once(folder: Path, trained: Trained, tmp_path: Path) -> None:
    """Runs that have begun continue together, and new ones begin together."""
    larger = SMALL.replace(beta=[0.1, 1, 4], steps=60)
    results = trained_to(larger, folder)
    assert sorted((len(names), step) for names, step in trained) == [(1, 0), (2, 40)]
    whole = trained_to(SMALL.replace(steps=60), tmp_path / "whole")
    weights = contents(folder, "weights.safetensors")
    assert {name: weights[name] for name in contents(whole.folder, "weights.safetensors")} == contents(
        whole.folder, "weights.safetensors"
    )
    assert (results.tree["runs/step"] == 60).all()


def test_runs_without_weights_are_trained_from_the_start(folder: Path, trained: Trained) -> None:
    (first, second) = SMALL.resolved().runs()
    RunFolder.of(folder, key_of(first)).weights.unlink()
    trained_to(SMALL.replace(steps=60), folder)
    assert sorted(trained, key=lambda each: each[1]) == [({key_of(first)}, 0), ({key_of(second)}, 40)]


# What cannot grow


def refused(study: Study, folder: Path, message: str, trained: Trained) -> None:
    """Asserts that a study is refused in one line, and that nothing in its folder changes."""
    before, begun = contents(folder), list(trained)
    with pytest.raises(InputError, match=message) as caught:
        trained_to(study, folder)
    assert "\n" not in str(caught.value)
    assert contents(folder) == before
    assert trained == begun


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 20}, r"steps: expected at least the 40 steps that the run at beta 0\.1, seed 0 has done, got 20"),
        ({"steps": 20, "seed": [0, 1]}, "steps: expected at least the 40 steps"),
        ({"width": 8}, r"got other settings: width: 4 before, 8 now; choose another --out, or give both values"),
        ({"width": [8, 16]}, r"got other settings: width: 4 before, 8, 16 now"),
        ({"batch_size": 8, "data": "linear", "likelihood": "gaussian"},
         "data: tetrominoes before, linear now; likelihood: bernoulli before, gaussian now; batch_size: 16 before, 8"),
    ],
    ids=str,
)  # fmt: skip
def test_change_of_finished_runs_is_refused_and_changes_nothing(
    change: dict[str, Any], message: str, folder: Path, trained: Trained
) -> None:
    refused(SMALL.replace(**change), folder, message, trained)


@pytest.mark.parametrize("kept", ["weights.safetensors", "record.nc"])
def test_fewer_steps_are_refused_by_what_is_left_of_a_run(kept: str, folder: Path, trained: Trained) -> None:
    for file in folder.glob("runs/*/*"):
        if file.name != kept:
            file.unlink()
    refused(SMALL.replace(steps=20), folder, "steps: expected at least the 40 steps", trained)


def test_schedule_over_all_steps_cannot_be_continued(tmp_path: Path, trained: Trained) -> None:
    study = SMALL.replace(warmup=0.5)
    trained_to(study, tmp_path)
    refused(
        study.replace(steps=60),
        tmp_path,
        r"steps: the run at beta 0\.1, seed 0 cannot continue, because its β has a schedule over 40 steps, not 60",
        trained,
    )


def test_steps_cannot_be_an_axis() -> None:
    with pytest.raises(InputError, match="steps: expected one number, got an axis: learning curves show the course"):
        SMALL.replace(steps=[20, 40])


# Parts of a study, and other measurements


def test_part_of_a_study_shows_its_runs_and_deletes_nothing(folder: Path, small: Path, trained: Trained) -> None:
    runs = contents(folder / "runs")
    narrow = trained_to(SMALL.replace(beta=1), folder)
    assert narrow.tree["rate_distortion"].sizes["beta"] == 1
    assert contents(folder / "runs") == runs
    whole = trained_to(SMALL, folder)
    assert trained == []
    assert contents(folder / "runs") == runs
    assert whole.tree.identical(open_results(small).tree)


def test_other_measure_settings_measure_again_without_training(folder: Path, tmp_path: Path, trained: Trained) -> None:
    measured = SMALL.replace(**{"measure.samples": 3, "measure.images": 16})
    before = contents(folder / "runs")
    again = trained_to(measured, folder)
    assert trained == []
    changed = {Path(name).name for name, content in contents(folder / "runs").items() if content != before[name]}
    assert changed == {"record.nc"}
    assert_same_numbers(again, trained_to(measured, tmp_path / "whole"))
    assert again.measure.samples == 3


def test_settings_of_learning_curves_measure_nothing_again(folder: Path, trained: Trained) -> None:
    before = contents(folder / "runs")
    trained_to(SMALL.replace(**{"measure.probe": 16, "measure.points": 2}), folder)
    assert (trained, contents(folder / "runs")) == ([], before)


def test_other_name_or_description_changes_no_run(folder: Path, trained: Trained) -> None:
    before = contents(folder / "runs")
    results = trained_to(SMALL.replace(name="other", description="other", checkpoint_every=3), folder)
    assert (trained, contents(folder / "runs")) == ([], before)
    assert results.study.name == open_results(folder).study.name == "other"


def test_runs_are_found_by_their_settings_in_another_study(folder: Path, trained: Trained) -> None:
    """The folder of a run is valid in every study with such a run."""
    shutil.rmtree(folder / "training", ignore_errors=True)
    (folder / "study.yaml").unlink()
    mine = Study(**{**SMALL.settings(), "name": "mine", "beta": [1.0], "network": "mlp(depth=1)", "depth": None})
    results = trained_to(mine, folder)
    assert trained == []
    assert results.run(beta=1) == Run(**{**SMALL.resolved().runs()[1].model_dump()})


def test_results_that_were_opened_earlier_grow_what_is_there_now(tmp_path: Path) -> None:
    earlier = run(SMALL, tmp_path / "study", quiet=True)
    run(SMALL.replace(beta=[0.1, 1, 4]), tmp_path / "study", quiet=True)
    assert earlier.grow(seed=[7], quiet=True).study.axes == {"beta": (0.1, 1.0, 4.0), "seed": (0, 7)}
    with pytest.raises(InputError, match=r"unknown setting 'seeds'.* did you mean 'seed'"):
        earlier.grow(seeds=[3])


def test_changed_images_leave_the_study_as_it_was(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (96, 1, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images)
    study = SMALL.replace(data=str(tmp_path / "mine.npz"), split="random", train_images=40, test_images=32, steps=2)
    folder = trained_to(study, tmp_path / "study").folder
    before = contents(folder)
    np.savez(tmp_path / "mine.npz", images=255 - images)
    with pytest.raises(InputError, match="has different ones now"):
        trained_to(study.replace(steps=4), folder)
    assert contents(folder) == before
