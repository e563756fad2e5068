"""Validation images: set apart from training, measured, and used to keep the best weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from helpers import InMemory, assert_same_results, contents, stopped_after
from torch import Tensor

from pyrovae import InputError, Results, Run, Study, fit, make_data, run
from pyrovae.analysis.findings.best import best
from pyrovae.build import make_rows
from pyrovae.data import as_input
from pyrovae.runner.validation import check_study
from pyrovae.store import schema

SMALL = {"images": 32, "outer": 16, "likelihood_images": 4, "probe": 32, "reconstructions": 8}


def images(number: int, seed: int) -> Tensor:
    """Bars at random places, to which a large network soon overfits."""
    draws = torch.Generator().manual_seed(seed)
    x = 0.3 * torch.rand(number, 1, 6, 6, generator=draws)
    x[torch.arange(number), 0, torch.randint(6, (number,), generator=draws)] = 0.9
    return x


def overfitting(**settings: object) -> Study:
    """24 training images, of which the validation loss rises before the last step."""
    chosen = {"seed": [0, 1], "steps": 300, "keep": "best", "validation_images": 32, "measure": SMALL}
    network = {"width": 64, "depth": 1, "latent_size": 4, "batch_size": 8, "learning_rate": 0.02}
    return Study(images(56, 0), test=images(32, 1), name="mine", beta=[0.01, 0.1], **network, **chosen | settings)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return run(overfitting(), tmp_path_factory.mktemp("kept") / "mine", compile="never", quiet=True)


@pytest.mark.parametrize("settings", [{}, {"data_seed": 3}, {"images_per_class": 40}])
def test_validation_images_are_in_no_training_set(settings: dict[str, int]) -> None:
    shared = {"data": "digits", "split": "random", **settings}
    limits = {} if "images_per_class" in settings else {"train_images": 300}
    _, train, test, validation = make_rows(Run(**shared, **limits, validation_images=200))
    _, _, _, other = make_rows(Run(**{**shared, "data_seed": 5}, **limits, validation_images=200))
    assert len(validation) == 200
    assert not set(validation.tolist()) & {*train.tolist(), *test.tolist()}
    assert torch.equal(validation, other), "the same for every training set"
    if not settings:
        _, same, *_ = make_rows(Run(**shared, **limits))
        assert torch.equal(train, same)


def test_all_other_training_images_are_used() -> None:
    _, train, test, validation = make_rows(Run(data="digits", validation_images=200))
    _, everything, same, none = make_rows(Run(data="digits"))
    assert sorted([*train.tolist(), *validation.tolist()]) == sorted(everything.tolist())
    assert torch.equal(test, same)
    assert not len(none)
    with pytest.raises(InputError, match=r"^validation_images: expected at most \d+, all but two of the training im"):
        make_rows(Run(data="digits", validation_images=len(everything) - 1))


@pytest.mark.parametrize("pixels", ["static", "dynamic"])
def test_validation_images_are_binarised_once(pixels: str) -> None:
    settings = {"pixels": pixels, "train_images": 64, "test_images": 64, "side": 16, "batch_size": 8}
    data, without = make_data(Run(**settings, validation_images=8)), make_data(Run(**settings))
    assert data.validation is not None
    assert {*data.validation.unique().tolist()} == {0, 255}
    assert torch.equal(data.train, without.train)
    assert without.validation is None


def test_best_weights_are_those_of_the_lowest_validation_loss(results: Results, tmp_path: Path) -> None:
    """They equal the last weights of a training up to there."""
    curves = results.tree["curves/loss"].sel(split="validation")
    steps = results.tree["runs/measured_step"]
    assert (steps == curves.step[curves.argmin("step")]).all()
    first = int(steps.min())
    assert first < 300, "the data are overfitted"
    shorter = run(overfitting(steps=first, keep="last"), tmp_path / "shorter", compile="never", quiet=True)
    (beta, seed), *_ = (place for place, step in steps.to_series().items() if step == first)
    ours, theirs = (each.pair(beta=beta, seed=seed).state_dict() for each in (results, shorter))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0)
    assert (shorter.tree["runs/measured_step"] == first).all()


def test_validation_is_a_split_of_all_results(results: Results) -> None:
    assert results.tree["rate_distortion"].split.values.tolist() == ["train", "test", "validation"]
    measured = results.images()["distortion"].sel(split="validation").mean("image")
    expected = results.tree["rate_distortion/distortion"].sel(split="validation").transpose(*measured.dims)
    np.testing.assert_allclose(measured, expected)
    assert "rate_distortion/distortion/validation" in results.table().columns
    without = schema.empty(Study(name="mine"))
    assert without["rate_distortion"].split.values.tolist() == ["train", "test"]


def test_pair_and_fit_have_the_best_weights(results: Results) -> None:
    x = as_input(images(56, 0))
    at = {"beta": 0.01, "seed": 1}
    pair, validation = results.pair(**at), make_data(results.run(**at)).validation
    assert validation is not None
    expected = results.tree["rate_distortion/distortion"].sel(split="validation", **at).item()
    assert pair.terms(validation, samples=50).distortion.mean().item() == pytest.approx(expected, rel=0.03)
    alone = fit(
        x, test=images(32, 1), **at, steps=300, keep="best", validation_images=32, width=64, depth=1, latent_size=4,
        batch_size=8, learning_rate=0.02, compile="never", quiet=True,
    )  # fmt: skip
    ours, theirs = (each.terms(validation, samples=50).distortion.mean().item() for each in (alone, pair))
    assert ours == pytest.approx(theirs, rel=0.05)


@pytest.mark.long
def test_interrupted_and_longer_trainings_keep_the_same_weights(tmp_path: Path) -> None:
    whole = overfitting(steps=60, checkpoint_every=20)
    run(whole, tmp_path / "whole", compile="never", quiet=True)
    with stopped_after(40):
        run(whole, tmp_path / "resumed", compile="never", quiet=True)
    run(whole, tmp_path / "resumed", compile="never", quiet=True)
    assert_same_results(tmp_path / "whole", tmp_path / "resumed")
    run(whole.replace(steps=30), tmp_path / "grown", compile="never", quiet=True)
    grown = run(whole, tmp_path / "grown", compile="never", quiet=True)
    expected = run(whole, tmp_path / "whole", quiet=True).tree["rate_distortion"].to_dataset()
    xr.testing.assert_identical(grown.tree["rate_distortion"].to_dataset(), expected)


@pytest.mark.long
def test_later_evaluations_use_the_best_weights(results: Results) -> None:
    before = contents(results.folder, "weights.safetensors")
    found = results.swap_prior("diagonal", quiet=True).tree["rate_distortion/distortion"]
    xr.testing.assert_allclose(found, results.tree["rate_distortion/distortion"], rtol=1e-4)
    assert contents(results.folder, "weights.safetensors") == before


@pytest.mark.parametrize(("by", "value"), [("validation", 1.0), ("validation D", 1.0), ("test D", 0.1)])
def test_best_beta_by_validation_need_not_be_that_by_test(by: str, value: float) -> None:
    study = Study(name="mine", beta=[0.1, 1.0], seed=[0, 1, 2], validation_images=100).resolved()
    tree = schema.empty(study)
    tree["runs/status"] = xr.full_like(tree["runs/status"], "done", object)
    falls = xr.DataArray([[5.0, 0.0], [0.0, 5.0], [5.0, 0.0]], {"split": [*study.splits], "beta": [0.1, 1.0]})
    noise = xr.DataArray(np.random.default_rng(0).normal(size=(3, 100)), dims=("seed", "image"))
    distortion = (100 + falls + noise.assign_coords(seed=[0, 1, 2])).transpose("beta", "seed", "split", "image")
    images = xr.Dataset({"distortion": distortion, "rate": 0 * distortion})
    for name in ("mutual_information", "log_n", "prior_gap", "prior_gap_se"):
        tree[f"information/{name}"] = xr.zeros_like(tree["information/log_n"]) + 5.0
    (answer,) = best(InMemory(tree, images), "beta", by)
    assert answer.values == (value,)
    assert answer.by in ("validation R + D", by)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"keep": "best"}, r"^keep: expected validation_images, by whose loss the weights are best, got none of them"),
        ({"keep": "best", "validation_images": 9, "target_rate": 5}, r"^keep: expected last with a target rate"),
    ],
)
def test_best_weights_need_a_comparable_validation_loss(settings: dict[str, object], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        check_study(Study(name="mine", **settings))


def test_best_by_names_the_splits_of_the_study(results: Results) -> None:
    with pytest.raises(InputError, match=r"^by: expected one of train, test, validation and one of D, R, R \+ D"):
        results.best("beta", by="unseen D")
