"""Training that moves β for a target rate."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import assert_same_results, contents, stopped_after
from scipy import stats

from pyrovae import InputError, Study, fit, load, open_results, run
from pyrovae.data import linear
from pyrovae.estimators import LinearGaussian
from pyrovae.runner.validation import check_study
from pyrovae.training import trainer
from pyrovae.training.adam import step_sizes
from pyrovae.training.target_rate import HORIZON, LIMITS, SPEED, Multiplier

#: Failure rate of a test with a statistical tolerance.
FAILURE = 2e-5
X = torch.rand(48, 1, 4, 4, generator=torch.Generator().manual_seed(0))
SMALL = {"latent_size": 2, "width": 8, "batch_size": 16, "measure": {"images": 16, "outer": 16, "likelihood_images": 4}}


def small_study(**settings: object) -> Study:
    return Study(X[:32], test=X[32:], **SMALL, **{"target_rate": [0.5, 2.0], "seed": [0, 1], "steps": 12} | settings)


@pytest.mark.long
def test_beta_settles_where_the_optimum_has_the_target_rate(tmp_path: Path) -> None:
    """The closed form at the β reached has the target rate, over training images with their own covariance."""
    targets, seeds = [1.0, 3.0], range(6)
    x = linear.source().load(torch.arange(2048))
    study = Study(
        x,
        test=x[:64],
        network="linear",
        likelihood="gaussian",
        guide="full_rank",
        latent_size=2,
        target_rate=targets,
        seed=list(seeds),
        steps=1500,
        batch_size=256,
        learning_rate=0.02,
        learning_rate_schedule="tail",
    )
    found = run(study, tmp_path / "linear", compile="never", quiet=True).tree["target_rate/beta_final"]
    centred = x.double() - x.double().mean(0)
    covariance = centred.T @ centred / len(x)
    for target in targets:
        betas = found.sel(target_rate=target).values
        rates = [LinearGaussian.best(covariance, 2, 1.0, float(beta)).rate for beta in betas]
        error = stats.sem(rates)
        assert error < 0.01 * target
        assert abs(np.mean(rates) - target) < error * stats.t.isf(FAILURE / 2, len(rates) - 1)


@pytest.mark.parametrize(("rate", "direction"), [(0.0, -1), (1.0, 0), (2.0, 1), (1e6, 1)])
def test_beta_moves_towards_the_target(rate: float, direction: int) -> None:
    one = Multiplier.of(torch.tensor([1.0]), torch.tensor([0.3]))
    one.update_(torch.tensor([rate]), step_sizes([0.01], 1)[:-1])
    assert (one.beta - 0.3).sign() == direction
    assert (one.beta / 0.3).log().abs() < 0.02, "the error is bounded"


def test_beta_stays_within_limits() -> None:
    pair = Multiplier.of(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 1.0]))
    for _ in range(2000):
        pair.update_(torch.tensor([0.0, 50.0]), torch.tensor([0.01, 0.01]))
    torch.testing.assert_close(pair.beta, torch.tensor(LIMITS))


def test_spread_is_the_deviation_of_a_settled_beta() -> None:
    """β takes two values in turn, at equal distances in log β."""
    one = Multiplier.of(torch.tensor([1.0]), torch.tensor([1.0]))
    for step in range(10 * HORIZON):
        one.update_(torch.tensor([0.5 if step % 2 else 1.5]), torch.tensor([0.1]))
    torch.testing.assert_close(one.spread / one.beta, torch.tensor([SPEED * 0.025]), rtol=0.02, atol=0)


@pytest.mark.long
def test_execution_modes_move_beta_equally(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for mode in ("compiled", "vmapped", "sequential"):
        monkeypatch.setattr(trainer, "candidate_modes", lambda *_, mode=mode: [mode])
        results = run(small_study(), tmp_path / mode, quiet=True)
        assert (results.tree["runs/mode"] == mode).all()
        found.append(results.tree["target_rate/beta_final"].values)
        np.testing.assert_allclose(found[0], found[-1], rtol=1e-4)
    assert (found[0] != 1).all()


def test_interrupted_training_continues_bitwise(tmp_path: Path) -> None:
    study = small_study(checkpoint_every=4)
    run(study, tmp_path / "whole", quiet=True)
    with stopped_after(8):
        run(study, tmp_path / "resumed", quiet=True)
    run(study, tmp_path / "resumed", quiet=True)
    assert_same_results(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.long
def test_longer_training_continues_from_the_beta_reached(tmp_path: Path) -> None:
    """Also where the learning rate fell to zero, and training goes back to where that began."""
    for schedule in ("constant", "tail"):
        whole, grown = (small_study(steps=steps, learning_rate_schedule=schedule) for steps in (20, 10))
        expected = run(whole, tmp_path / f"{schedule} whole", quiet=True).tree["target_rate"].to_dataset()
        run(grown, tmp_path / schedule, quiet=True)
        found = run(grown.replace(steps=20), tmp_path / schedule, quiet=True).tree["target_rate"].to_dataset()
        assert found.equals(expected)


def test_runs_at_other_targets_join_a_study(tmp_path: Path) -> None:
    run(small_study(target_rate=2.0), tmp_path / "grown", quiet=True)
    before = contents(tmp_path / "grown" / "runs", "weights.safetensors")
    results = run(small_study(target_rate=[2.0, 0.5]), tmp_path / "grown", quiet=True)
    after = contents(tmp_path / "grown" / "runs", "weights.safetensors")
    assert (len(before), len(after)) == (2, 4)
    assert before.items() <= after.items()
    assert results.study.axes["target_rate"] == (2.0, 0.5)


def test_study_of_betas_does_not_become_one_of_target_rates(tmp_path: Path) -> None:
    run(small_study(target_rate=None, beta=[0.1, 1.0]), tmp_path / "mine", quiet=True)
    with pytest.raises(InputError, match=r"target_rate: None before, 0\.5, 2\.0 now; choose another --out"):
        run(small_study(), tmp_path / "mine", quiet=True)


def test_pair_has_the_beta_that_training_reached(tmp_path: Path) -> None:
    results = run(small_study(), tmp_path / "mine", quiet=True)
    reached = results.tree["target_rate/beta_final"].sel(target_rate=2.0, seed=1).item()
    assert results.pair(target_rate=2.0, seed=1).weights["beta"] == pytest.approx(reached)
    assert reached != 1
    alone = fit(X[:32], target_rate=2.0, seed=1, steps=12, latent_size=2, width=8, batch_size=16, quiet=True)
    assert alone.weights["beta"] == pytest.approx(reached, rel=1e-4)
    alone.save(tmp_path / "pair.safetensors")
    assert load(tmp_path / "pair.safetensors").weights == alone.weights
    weight = results.tree["curves/weight"]
    assert weight.dims == ("step", "target_rate", "seed")
    assert weight.sel(target_rate=2.0, seed=1, step=12).item() == reached


def test_missed_target_is_reported_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(small_study(target_rate=[400.0, 500.0]), tmp_path / "mine")
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("target_rate")]
    assert line.startswith("target_rate: 4 of 4 runs have missed theirs, such as R* = 500, where R is ")
    missed = "the rate of 4 of 4 runs is more than 5% from its target, at R* = 400, 500"
    assert f"{missed}; no comparison at equal rate uses them" in results.caveats()


def test_gamma_is_beta_under_a_target_rate(tmp_path: Path) -> None:
    """At γ = β, the gap model has the loss of the β-VAE; with its first γ it would not move with β."""
    results = run(small_study(model="gap", target_rate=[2.0], seed=[0]), tmp_path / "mine", quiet=True)
    last = results.tree["curves"].to_dataset().squeeze().isel(step=-1)
    assert last["weight"] < 0.999
    np.testing.assert_allclose(last["loss"], last["distortion"] + last["weight"] * last["rate"], rtol=1e-5)


def test_target_rate_takes_the_place_of_beta() -> None:
    study = Study(name="mine", beta=0.3, target_rate=20)
    assert list(study.axes) == ["target_rate", "seed"]
    assert (study.swept, Study(name="mine").swept) == ("target_rate", "beta")
    assert {each.beta for each in study.runs()} == {0.3}
    assert len(study.replace(target_rate=[10, 20, 30]).cohorts()) == 1
    assert study.replace(target_rate=None, beta=[0.1, 1]).axes == {"beta": (0.1, 1.0), "seed": (0,)}
    assert Study.of_yaml(study.to_yaml()) == study


def test_axis_of_beta_and_of_target_rates_is_refused() -> None:
    with pytest.raises(InputError, match=r"^beta: expected one value, such as beta=1, from which training"):
        Study(name="mine", beta=[0.1, 1], target_rate=[10, 20])
    with pytest.raises(InputError, match=r"^gamma: expected none with a target rate \(10\), because γ is β then"):
        check_study(Study(name="mine", model="gap", gamma=0.5, target_rate=[10, 20]))
    with pytest.raises(InputError, match=r"^target_rate: "):
        Study(name="mine", target_rate=[10, -1])


def test_opened_study_at_target_rates_names_its_axis(tmp_path: Path) -> None:
    run(small_study(), tmp_path / "mine", quiet=True)
    results = open_results(tmp_path / "mine")
    with pytest.raises(InputError, match=r"^unknown axis 'beta'; valid: target_rate, seed"):
        results.pair(beta=1)
