import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset

import pyrovae
from pyrovae import InputError, Metrics, Pair, Run, Study
from pyrovae.models.priors import StandardNormal
from pyrovae.system.tensor_file import save

X = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SMALL: Mapping[str, Any] = {"latent_size": 2, "width": 4, "steps": 4, "batch_size": 16, "quiet": True}


class Own(StandardNormal):
    """A prior of the user's own."""


@pytest.fixture(scope="module")
def pair() -> Pair:
    return pyrovae.fit(X, beta=4, prior="mixture", components=3, **SMALL)


def state(pair: Pair) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in pair.state_dict().items()}


def test_fit_trains_the_pair_that_a_study_trains(tmp_path: Path) -> None:
    settings = {name: value for name, value in SMALL.items() if name != "quiet"}
    measure = {"images": 16, "outer": 8, "likelihood_images": 4, "particles": 8, "reconstructions": 4, "probe": 8}
    study = Study(X, test=X[:8], beta=0.5, **settings, measure=measure)
    in_study = study.run(tmp_path / "mine", quiet=True).pair()
    alone = pyrovae.fit(X, test=X[:8], beta=0.5, **SMALL)
    assert state(alone) == state(in_study)
    assert (alone.origin.run, alone.origin.train_images) == (in_study.origin.run, 40)


def test_pair_remembers_beta_settings_and_size(pair: Pair) -> None:
    assert pair.origin is not None
    assert pair.weights == {"beta": 4}
    assert (pair.origin.train_images, pair.origin.run.prior, pair.event_shape) == (40, "mixture", (1, 4, 4))
    assert "torch" in pair.origin.provenance["versions"]
    terms = pair.terms(X)
    torch.testing.assert_close(terms.loss, terms.distortion + 4 * terms.rate)
    torch.testing.assert_close((lone := pair(X)).loss, lone.distortion + 4 * lone.rate)
    torch.testing.assert_close((other := pair.terms(X, beta=0.1)).loss, other.distortion + 0.1 * other.rate)


def test_saved_pair_is_loaded_as_it_was(pair: Pair, tmp_path: Path) -> None:
    pair.save(tmp_path / "mine.safetensors")
    again = pyrovae.load(tmp_path / "mine.safetensors")
    assert state(again) == state(pair)
    assert again.origin == pair.origin


def test_own_components_are_loaded_only_with_trust(tmp_path: Path) -> None:
    pyrovae.make_pair(Run(prior=f"{__name__}:Own", width=4), X.shape[1:]).save(tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match="would run code of the module"):
        pyrovae.load(tmp_path / "mine.safetensors")
    assert isinstance(pyrovae.load(tmp_path / "mine.safetensors", trust=[__name__]).model.prior, Own)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "no such file"),
        (b"nothing", "^[^;]* got one that is damaged or another$"),
        ({"run": {"beta": 1}}, "without a valid 'event_shape'"),
    ],
)
def test_file_without_a_pair_gives_one_line(content: Any, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        save(file, {"pair": {"a": torch.zeros(1)}}, content)
    with pytest.raises(InputError, match=expected):
        pyrovae.load(file)


def test_pair_of_other_programs_is_not_saved(pair: Pair, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a pair made from settings"):
        Pair(pair.model, pair.guide).save(tmp_path / "mine.safetensors")


def test_callbacks_get_the_learning_curves() -> None:
    seen: list[Metrics] = []
    pair = pyrovae.fit(X, test=X[:8], beta=0.5, callbacks=[seen.append], **SMALL)
    assert [metrics.step for metrics in seen] == sorted({metrics.step for metrics in seen})
    last = seen[-1]
    assert (last.step, last.splits, last.runs) == (4, ("train", "test"), (pair.origin.run,))
    torch.testing.assert_close(last.loss, last.distortion + 0.5 * last.rate)
    (row,) = last.rows()
    assert row["loss/test"] == last.loss[0, 1].item()


def test_study_logs_its_learning_curves(tmp_path: Path) -> None:
    seen: list[Metrics] = []
    measure = {"images": 16, "outer": 8, "likelihood_images": 4, "particles": 8, "reconstructions": 4, "probe": 8}
    settings = {name: value for name, value in SMALL.items() if name != "quiet"}
    study = Study(X, beta=[0.1, 1], **settings, measure=measure)
    results = study.run(tmp_path / "mine", quiet=True, callbacks=[seen.append])
    lines = [json.loads(line) for line in (tmp_path / "mine/metrics.jsonl").read_text().splitlines()]
    assert [{name: line[name] for name in row} for line, row in zip(lines, seen[0].rows(), strict=False)] == (
        seen[0].rows()
    )
    curve = results.tree["curves"].to_dataset()["distortion"].sel(beta=0.1, seed=0, split="test")
    logged = [line["distortion/test"] for line in lines if line["beta"] == 0.1]
    np.testing.assert_allclose(logged, curve.values)


def test_generated_images_have_the_mean_of_the_model(pair: Pair) -> None:
    torch.manual_seed(0)
    expected = pair.decode(pair.model.prior().sample((4000,))).mean
    drawn = pair.generate(4000)
    error = ((expected.var(0) + drawn.var(0)) / 4000).sqrt()
    assert ((expected.mean(0) - drawn.mean(0)).abs() < 5.1 * error).all()  # 16 pixels at a failure rate of 2e-5


def test_reconstructions_are_those_of_codes(pair: Pair) -> None:
    with torch.no_grad():
        copy = pyrovae.make_pair(pair.origin.run, X.shape[1:])
        copy.load_state_dict(pair.state_dict())
        copy.guide.encoder[-1].bias[2:] = -20  # narrow: z is at the mean
        torch.testing.assert_close(copy.reconstruct(X), copy.decode(copy.encode(X).mean).mean, atol=1e-4, rtol=0)


def test_evaluation_restores_modes_and_leaves_no_gradients(pair: Pair) -> None:
    pair.train()
    assert not pair.terms(X).loss.requires_grad
    assert not pair.generate(2).requires_grad
    assert pair.training
    assert pair(X).loss.requires_grad
    pair.eval()


@pytest.mark.filterwarnings("ignore:data. expected columns with standard deviations")
@pytest.mark.parametrize(
    ("x", "settings", "expected"),
    [
        (X.numpy().astype(np.float64), {}, None),
        ((255 * X).byte(), {"pixels": "dynamic"}, None),
        (TensorDataset(X, torch.arange(40)), {"split": "held_out", "held_out": "3,4"}, None),
        (X.flatten(1), {"likelihood": "gaussian_shared"}, None),
        (X[:5], {"batch_size": 5}, None),
        (3 * X, {}, r"'bernoulli'.* expected values in \[0, 1\].*uint8, or take a likelihood .* gaussian_shared"),
        (X[0, 0, 0], {}, r"expected images \[N, H, W\].*got torch.float32 of shape \[4\]"),
        (X * np.nan, {}, "NaN or ∞ in 40 of 40 items"),
        ([X[0], X[0, 0]], {}, "expected numbers of one shape"),
        (X, {"beta": [0.1, 1]}, r"beta: expected one value.*pyrovae\.Study"),
        (X, {"prior": "vampp"}, "unknown prior 'vampp'"),
        (X, {"degrees": 3}, "unknown setting 'degrees'"),
        (X, {"latent_dim": 3}, "no component of these runs has it; did you mean 'latent_size'; valid: "),
        (X > 0.5, {}, None),
        ((20 * X).byte().flatten(1), {"likelihood": "poisson"}, "expected counts, got uint8, which means pixels"),
        ((20 * X).round().flatten(1) + 0.25, {"likelihood": "poisson"}, "whole numbers, not such as .*offset=True"),
        ((1e5 * X).flatten(1), {"likelihood": "gaussian_shared"}, "data: expected values near 1 in size, got up to 1e"),
        (X, {"batch_size": 41}, "at most the 40 training images"),
        (X, {"learning_rate": 1e12, "steps": 20}, "learning_rate: expected one at which training converges"),
    ],
)
def test_data_and_settings_fit_or_give_one_line(x: Any, settings: dict[str, Any], expected: str | None) -> None:
    if expected is None:
        assert pyrovae.fit(x, **{**SMALL, **settings}).terms is not None
        return
    with pytest.raises(InputError, match=expected):
        pyrovae.fit(x, **{**SMALL, **settings})


def test_terms_are_means_over_draws(pair: Pair) -> None:
    torch.manual_seed(0)
    draws = torch.stack([pair.terms(X).distortion for _ in range(3)])
    torch.manual_seed(0)
    torch.testing.assert_close(pair.terms(X, samples=3).distortion, draws.mean(0))
    with pytest.raises(InputError, match="unknown argument 'sample'; valid: samples, beta"):
        pair.terms(X, sample=3)
    with pytest.raises(InputError, match="n: expected an integer of at least 1, got 0"):
        pair.generate(0)
