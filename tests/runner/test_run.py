"""Studies from end to end, at a small size."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch._dynamo.utils import counters

from pyrovae import InputError, Pair, Study, fit, open_results, parts, run
from pyrovae.analysis.findings import findings
from pyrovae.build import make_data
from pyrovae.data import as_input, linear
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import LinearGaussian, active_units, marginal_rate, rate_terms
from pyrovae.programs.noise import fork_seed, generator
from pyrovae.runner import cohort, measuring
from pyrovae.runner.remeasure import reevaluate
from pyrovae.study import Measure
from pyrovae.training.trainer import Interrupted, Training


def small(**settings: Any) -> Study:
    base = {
        "data": "tetrominoes",
        "seed": [0, 1],
        "depth": 1,
        "width": 8,
        "train_images": 256,
        "test_images": 128,
        "batch_size": 32,
        "steps": 90,
        "beta": [0.01, 1, 4],
        "learning_rate": 1e-3,
        "learning_rate_schedule": "constant",
    }
    measured = {"measure.images": 128, "measure.particles": 4, "measure.probe": 64, "measure.points": 8}
    measured |= {"measure.outer": 256, "measure.likelihood_images": 8, "measure.reconstructions": 16}
    return Study.load("quick", **(base | measured | {"checkpoint_every": 40} | settings))


def weights(folder: Path) -> dict[str, bytes]:
    """The files with the weights of all runs, by key."""
    return {file.parent.name: file.read_bytes() for file in folder.glob("runs/*/weights.safetensors")}


def test_measures_are_tried_out_on_little(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried, measured_runs = [], measuring.measured_runs

    def recorded(training: Training, settings: Measure, *arguments: Any) -> Any:
        tried.append(settings)
        return measured_runs(training, settings, *arguments)

    monkeypatch.setattr(measuring, "measured_runs", recorded)
    run(small(beta=1, seed=0, steps=2, **{"measure.particles": 100}), tmp_path / "study", quiet=True)
    (few,) = tried
    assert max(few.images, few.outer, few.likelihood_images, few.particles, few.reconstructions) == 16


def test_runs_agree_across_partitions_into_cohorts(tmp_path: Path) -> None:
    settings = {"beta": [0.1, 1.0, 3.0], "seed": 0, "steps": 50}
    together = run(small(**settings), tmp_path / "all", quiet=True)
    for beta in settings["beta"]:  # type: ignore[attr-defined]
        alone = run(small(**settings | {"beta": beta}), tmp_path / str(beta), quiet=True)
        for name, value in alone.pair(beta=beta).named_parameters():
            torch.testing.assert_close(
                value, dict(together.pair(beta=beta).named_parameters())[name], atol=1e-4, rtol=0
            )


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, marks=pytest.mark.long),
        {"prior": "aggregate_subsampled", "components": 20, "refresh": 7},
    ],
    ids=str,
)
def test_resumed_study_equals_the_uninterrupted_one_bitwise(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = small(beta=[0.01, 4], **settings)
    whole = run(study, tmp_path / "whole", quiet=True)
    save = Training.save

    def save_then_stop(self: Training, file: Path) -> None:
        save(self, file)
        if self.step == 40:
            raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", save_then_stop)
        with pytest.raises(Interrupted):
            run(study, tmp_path / "cut", quiet=True)
    cut = run(study, tmp_path / "cut", quiet=True)
    for group in ("/rate_distortion", "/curves"):
        xr.testing.assert_identical(whole.tree[group].to_dataset(), cut.tree[group].to_dataset())
    xr.testing.assert_identical(whole.images(), cut.images())
    assert weights(whole.folder) == weights(cut.folder)


def test_compiled_and_eager_training_agree(tmp_path: Path) -> None:
    """In two cohorts whose programs differ only in a constant, and not in a shape."""
    study = small(steps=30, seed=0, likelihood="gaussian", noise_scale=[0.5, 2.0])
    before = counters["stats"]["unique_graphs"]
    compiled = run(study, tmp_path / "compiled", compile="always", quiet=True)
    assert counters["stats"]["unique_graphs"] == before + 2
    eager = run(study, tmp_path / "eager", compile="never", quiet=True)
    for results, mode in ((compiled, "compiled"), (eager, "vmapped")):
        assert set(results.tree["/runs/mode"].values.flatten()) == {mode}
    for settings in ({"beta": 1, "noise_scale": scale} for scale in (0.5, 2.0)):
        one, other = compiled.pair(**settings), eager.pair(**settings)
        for ours, theirs in zip(one.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_diverged_run_is_marked_and_affects_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    healthy = run(small(), tmp_path / "healthy", quiet=True)
    start = cohort.start

    def poisoned(*args: Any) -> Any:
        training, checked = start(*args)
        batch = training._batch

        def poison(step: int) -> Any:
            if step == 60:
                next(iter(training.lockstep.params.values()))[1] = float("nan")
            return batch(step)

        training._batch = poison
        return training, checked

    monkeypatch.setattr(cohort, "start", poisoned)
    results = run(small(), tmp_path / "ill", quiet=True)
    status = results.tree["/runs/status"].values.flatten().tolist()
    assert status == ["done", "diverged", "done", "done", "done", "done"]
    assert int(results.tree["/runs/diverged_at"].values.flatten()[1]) == 60
    assert all(torch.isfinite(value).all() for value in results.pair(beta=0.01, seed=1).parameters())
    for name in ("distortion", "rate"):
        ours, theirs = (
            each.tree[f"/rate_distortion/{name}"].stack(run=["beta", "seed"]) for each in (results, healthy)
        )
        rest = [0, 2, 3, 4, 5]
        np.testing.assert_array_equal(ours.isel(run=rest).values, theirs.isel(run=rest).values)


def test_results_have_the_grid_and_a_floor_below_distortion(tmp_path: Path) -> None:
    run(small(depth=[1, 2], steps=20), tmp_path / "study", quiet=True)
    cells = open_results(tmp_path / "study").tree["/rate_distortion"].to_dataset()
    assert dict(cells.sizes) == {"split": 2, "beta": 3, "seed": 2, "depth": 2}
    assert (cells["floor"] < cells["distortion"]).all()
    assert (cells["distortion_se"] > 0).all()
    np.testing.assert_allclose(cells["elbo"], -cells["distortion"] - cells["rate"])


def test_folder_of_another_study_is_refused(tmp_path: Path) -> None:
    run(small(steps=2), tmp_path / "study", quiet=True)
    with pytest.raises(InputError, match=r"got other settings: width: 8 before, 9 now"):
        run(small(steps=2, width=9), tmp_path / "study", quiet=True)


def test_truncated_weights_are_refused(tmp_path: Path) -> None:
    run(small(steps=2), tmp_path / "study", quiet=True)
    for file in tmp_path.glob("study/runs/*/weights.safetensors"):
        file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(InputError, match="damaged"):
        open_results(tmp_path / "study").pair(beta=1, seed=0)


def test_information_equals_the_estimators_on_the_trained_pair(tmp_path: Path) -> None:
    study = small(beta=[0.01, 1.0], seed=[0, 1])
    results = run(study, tmp_path / "study", quiet=True)
    codes = results.tree["information"].sel(beta=0.01, seed=1)
    images = make_data(study.runs()[0])
    pair = results.pair(beta=0.01, seed=1)
    with torch.no_grad():
        q, unseen = (pair.guide.posterior(part / 255) for part in (images.train, images.test))
    draws = generator(1, "information")
    again = rate_terms(q, pair.model.prior(), generator=draws)
    rate = marginal_rate(unseen, q, generator=draws)
    assert abs(codes["mutual_information"].item() - again.mutual_information.value) < 1e-4
    assert abs(codes["prior_gap"].item() - again.prior_gap.value) < 1e-3
    assert abs(codes["prior_gap_se"].item() - again.prior_gap.se) < 1e-3
    assert abs(codes["marginal_rate"].item() - rate.value) < 1e-3
    assert abs(codes["marginal_rate_se"].item() - rate.se) < 1e-3
    assert codes["log_n"].item() == np.log(256)
    assert codes["active_units"].item() == active_units(q).value
    assert (results.tree["information"]["mutual_information"] <= np.log(256)).all()
    assert results.tree["information"]["mutual_information"].attrs["kind"] == "unbiased"


def test_unsupported_measures_are_skipped_with_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: Any, **__: Any) -> Any:
        raise UnsupportedError("expected one latent site, got two")

    monkeypatch.setattr(Pair, "latent", unsupported)
    results = run(small(steps=2), tmp_path / "study", quiet=True)
    codes = results.tree["information"].to_dataset()
    assert codes.drop_vars("log_n").isnull().all().to_array().all()
    assert (codes["log_n"] == np.log(256)).all()
    (note,) = set(results.tree["runs/skipped"].values.flatten())
    measures, reason = note.split(": ", 1)
    assert {"information", "memorisation"} <= set(measures.split(", "))
    assert reason == "not measured, expected one latent site, got two"
    assert results.tree["rate_distortion"]["rate"].notnull().all()
    assert set(results.tree["runs/status"].values.flatten()) == {"done"}


def test_reevaluation_adds_results_and_trains_nothing(tmp_path: Path) -> None:
    results = run(small(beta=[0.01, 1]), tmp_path / "study", quiet=True)
    before = weights(results.folder)
    _, same = reevaluate(tmp_path / "study", samples=1)
    _, more = reevaluate(tmp_path / "study", samples=20, outer=256)
    assert weights(results.folder) == before
    again = open_results(tmp_path / "study")
    assert set(again.evaluations) == {"samples=1", "samples=20,outer=256"}
    for group in ("rate_distortion", "information"):
        xr.testing.assert_identical(again.tree[group].to_dataset(), results.tree[group].to_dataset())
        xr.testing.assert_equal(same.tree[group].to_dataset(), results.tree[group].to_dataset())
    xr.testing.assert_identical(again.images(), results.images())
    xr.testing.assert_equal(same.images(), results.images())
    assert more.measure.samples == 20
    assert (more.tree["information/prior_gap_se"] < same.tree["information/prior_gap_se"]).all()
    own, later = findings(results)[0], findings(more)[0]
    assert own.text == later.text
    assert own.contrast.effect != later.contrast.effect


@pytest.mark.parametrize("setting", ["probe", "points"])
def test_settings_of_learning_curves_cannot_be_reevaluated(setting: str, tmp_path: Path) -> None:
    run(small(steps=2), tmp_path / "study", quiet=True)
    with pytest.raises(InputError, match=f"{setting}: expected a setting of measures after training"):
        reevaluate(tmp_path / "study", **{setting: 9})


@pytest.mark.long
def test_aggregate_prior_memorises_less_when_leaving_one_out(tmp_path: Path) -> None:
    priors = ["standard_normal", "aggregate", "aggregate_leave_one_out"]
    study = small(prior=priors, beta=0.1, seed=0, steps=300, refresh=10, latent_size=2, **{"measure.images": 256})
    results = run(study, tmp_path / "study", quiet=True)
    cells = results.tree["rate_distortion"].to_dataset().sel(beta=0.1, seed=0)
    codes = results.tree["information"].to_dataset().sel(beta=0.1, seed=0)
    rate, exact = cells["rate"], codes.sel(prior="aggregate")
    error = 4.27 * np.hypot(cells["rate_se"].sel(prior="aggregate", split="train"), exact["mutual_information_se"])
    assert rate.sel(prior="aggregate", split="train") <= exact["log_n"]
    assert abs(rate.sel(prior="aggregate", split="train") - exact["mutual_information"]) < error
    assert codes["prior_gap"].sel(prior="aggregate") < 1e-6
    assert abs(exact["test_prior_gap"]) > 0.1
    behind = rate.sel(split="test") - rate.sel(split="train")
    narrower = behind.sel(prior="aggregate") - behind.sel(prior="aggregate_leave_one_out")
    assert narrower > 4.27 * (cells["rate_se"].sel(prior=priors[1:]) ** 2).sum() ** 0.5
    assert results.pair(prior="aggregate").model.prior.bank.shape == (256, 4)


#: Priors that are trained with a pair.
TRAINED = [name for name in parts.names("prior") if not hasattr(parts.resolve("prior", name), "fit_loss")]


def _every_prior() -> Study:
    return small(prior=TRAINED, beta=1.0, seed=0, steps=3, components=9, latent_size=2, **{"measure.points": 2})


@pytest.mark.long
def test_reevaluation_reproduces_every_prior(tmp_path: Path) -> None:
    results = run(_every_prior(), tmp_path / "study", quiet=True)
    _, again = reevaluate(tmp_path / "study", samples=1)
    for group in ("rate_distortion", "information"):
        xr.testing.assert_equal(again.tree[group].to_dataset(), results.tree[group].to_dataset())
    xr.testing.assert_equal(again.images(), results.images())


@pytest.mark.long
def test_every_prior_is_saved_and_restored(tmp_path: Path) -> None:
    study = _every_prior()
    results = run(study, tmp_path / "study", quiet=True)
    images = make_data(study.runs()[0]).train
    reopened = open_results(tmp_path / "study")
    for name in TRAINED:
        pair = reopened.pair(prior=name)
        with torch.no_grad():
            torch.manual_seed(0)
            terms = [pair(images[:128] / 255, beta=1.0, index=torch.arange(128)) for _ in range(50)]
            rate = torch.stack([each.rate.mean() for each in terms])
            assert pair.model.prior().sample((5,)).shape == (5, 2)
        cell = results.tree["rate_distortion"].to_dataset().sel(prior=name, split="train", beta=1.0, seed=0)
        assert abs(rate.mean() - cell["rate"].item()) < 4.27 * (cell["rate_se"].item() + rate.std() / 50**0.5) + 1e-4
        assert results.pictures("samples", prior=name)["image"].values.std() > 0
    plane = results.pictures("plane", prior="aggregate", beta=1.0, seed=0)
    np.testing.assert_allclose(plane["log_p"], plane["log_q"], atol=1e-3)


def test_learning_curves_do_not_change_training(tmp_path: Path) -> None:
    """Though encodings are refreshed for them."""
    pairs = []
    for points in (2, 8):
        study = small(prior="aggregate", beta=1.0, seed=0, steps=30, refresh=20, **{"measure.points": points})
        pairs.append(run(study, tmp_path / str(points), quiet=True).pair())
    for one, other in zip(pairs[0].parameters(), pairs[1].parameters(), strict=True):
        assert torch.equal(one, other)


def test_swapped_prior_changes_rate_by_the_gap_and_not_distortion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pyrovae.estimators.prior_fit.STEPS", 1000)
    results = run(
        small(beta=[0.1, 1.0], seed=0, latent_size=2, **{"measure.images": 256}), tmp_path / "study", quiet=True
    )
    before, codes = (results.tree[group].to_dataset() for group in ("rate_distortion", "information"))
    for prior in ("aggregate", "mixture"):
        results, again = reevaluate(tmp_path / "study", prior=prior, samples=4)
        assert (again.name, again.tree.attrs["prior"]) == (f"prior={prior},samples=4", prior)
        own = results.evaluations["samples=4"].tree  # of the pairs' own prior
        after, swapped = (again.tree[group].to_dataset() for group in ("rate_distortion", "information"))
        np.testing.assert_allclose(after["distortion"], own["rate_distortion/distortion"], rtol=1e-5)
        train = {"split": "train"}
        fall = before["rate"].sel(train) - after["rate"].sel(train)
        gap = codes["prior_gap"] - swapped["prior_gap"]
        error = np.sqrt(
            sum(
                each**2
                for each in (
                    before["rate_se"].sel(train),
                    after["rate_se"].sel(train),
                    codes["prior_gap_se"],
                    swapped["prior_gap_se"],
                )
            )
        )
        assert (abs(fall - gap) < 4.27 * error).all()
        assert (gap > 0).all()
    assert (swapped["prior_gap"] > 0).all()


def test_unsuitable_priors_are_not_swapped_in(tmp_path: Path) -> None:
    run(small(steps=2, model="hierarchical", guide="hierarchical"), tmp_path / "study", quiet=True)
    for prior, message in (
        ("mixture", "whose prior can be swapped, but expected one latent site"),
        ("vamp", "for its z1"),
        ("x", "valid"),
    ):
        with pytest.raises(InputError, match=message):
            reevaluate(tmp_path / "study", prior=prior)
    assert not open_results(tmp_path / "study").evaluations


def test_any_setting_can_be_an_axis(tmp_path: Path) -> None:
    axes = {"split": ["random", "checkerboard"], "guide": ["mean_field", "full_rank"]}
    results = run(small(**axes, beta=1.0, seed=0, steps=2), tmp_path / "study", quiet=True)
    cells = open_results(tmp_path / "study").tree["rate_distortion"].to_dataset()
    sizes = {"split": 2, "beta": 1, "seed": 1, "data_split": 2, "guide": 2}
    assert dict(cells.sizes) == sizes
    assert cells["distortion"].notnull().all()
    assert results.pair(split="random", guide="full_rank").guide.event_shape == (10,)


def test_pair_of_an_unfinished_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_probe", lambda self: (_ for _ in ()).throw(Interrupted()))
        with pytest.raises(Interrupted):
            run(small(), tmp_path / "study", quiet=True)
    with pytest.raises(InputError, match="is not trained yet"):
        open_results(tmp_path / "study").pair(beta=1, seed=0)


def test_unfinished_study_is_not_reevaluated(tmp_path: Path) -> None:
    run(small(steps=2), tmp_path / "study", quiet=True)
    next(tmp_path.glob("study/runs/*/record.nc")).unlink()
    with pytest.raises(InputError, match=r"expected a finished study, but the run at .* is not finished"):
        reevaluate(tmp_path / "study", samples=2)


def test_reevaluation_of_nothing_is_refused(tmp_path: Path) -> None:
    run(small(steps=2), tmp_path / "study", quiet=True)
    with pytest.raises(InputError, match="expected settings, measures or a prior"):
        reevaluate(tmp_path / "study")


def test_trained_linear_pair_reaches_the_theoretical_curve(tmp_path: Path) -> None:
    study = Study.load(
        "linear", seed=0, beta=[0.03, 0.3, 3.0], steps=3_000, learning_rate=0.01, **{"measure.outer": 64}
    )
    results = run(study, tmp_path / "study", compile="never", quiet=True)
    data = make_data(study.runs()[0])
    for beta in study.axes["beta"]:
        # The optimum for these vectors is a lower bound, which training approaches.
        covariance = data.train.double().T @ data.train.double() / len(data.train)
        best = LinearGaussian.best(covariance, 4, 1.0, beta)
        cell = results.tree["rate_distortion"].to_dataset().sel(beta=beta, seed=0, split="train")
        loss = cell["distortion"] + beta * cell["rate"]
        error = cell["distortion_se"] + beta * cell["rate_se"]
        assert best.distortion + beta * best.rate - 4.11 * error < loss
        assert loss < best.distortion + beta * best.rate + 4.11 * error
    theory = results.tree["theory"].to_dataset()
    population = LinearGaussian.best(linear.covariance(), 4, 1.0, 3.0)
    assert abs(theory["rate"].sel(beta=3.0, method="nearest").item() - population.rate) < 0.1


@pytest.mark.long
def test_default_type_of_a_script_changes_nothing(tmp_path: Path) -> None:
    study = small(seed=0, beta=1, steps=20, prior="vamp", components=4)
    before = run(study, tmp_path / "float32", quiet=True)
    torch.set_default_dtype(torch.float64)
    try:
        after = run(study, tmp_path / "float64", quiet=True)
        reevaluate(tmp_path / "float64", images=32)
        pair = open_results(tmp_path / "float32").pair(beta=1)
        x = as_input(make_data(study.runs()[0]).test)
        with fork_seed(0):
            losses = pair(x).loss
    finally:
        torch.set_default_dtype(torch.float32)
    reevaluate(tmp_path / "float32", images=32)
    assert weights(before.folder) == weights(after.folder)
    trees = [open_results(tmp_path / name).tree for name in ("float32", "float64")]
    for group in ("rate_distortion", "information", "likelihood", "evaluations/images=32/likelihood"):
        xr.testing.assert_identical(*(tree[group].to_dataset() for tree in trees))
    with fork_seed(0):
        torch.testing.assert_close(before.pair(beta=1)(x).loss, losses, rtol=0, atol=0)


def test_learning_rates_and_warmups_share_a_cohort(tmp_path: Path) -> None:
    """Within rounding, each run is what it is alone, also in its state of Adam and its learning curves."""
    axes: dict[str, Any] = {"learning_rate": [1e-3, 1e-2], "warmup": [0.0, 0.5]}
    study = small(beta=1.0, seed=0, steps=20, **axes)
    assert [len(cohort.runs) for cohort in study.cohorts()] == [4]
    together = run(study, tmp_path / "together", quiet=True)
    for number, (rate, warmup) in enumerate(product(*axes.values())):
        alone = run(study.replace(learning_rate=rate, warmup=warmup), tmp_path / str(number), quiet=True)
        ours, theirs = together.pair(learning_rate=rate, warmup=warmup).state_dict(), alone.pair().state_dict()
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
        curve = together.tree["curves/loss"].sel(learning_rate=rate, warmup=warmup, drop=True)
        xr.testing.assert_allclose(curve, alone.tree["curves/loss"], rtol=1e-4)
    starts = [together.pair(learning_rate=rate, warmup=0.0).state_dict() for rate in axes["learning_rate"]]
    assert any(not torch.equal(starts[0][name], starts[1][name]) for name in starts[0])


def test_random_numbers_of_a_script_stay_as_they_were(tmp_path: Path) -> None:
    """Whatever it draws itself depends on its own seed only."""
    study = small(seed=0, beta=1, steps=2)
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    run(study, tmp_path / "study", quiet=True)
    reevaluate(tmp_path / "study", images=32)
    fit(as_input(make_data(study.runs()[0]).test), beta=0.5, width=4, latent_size=2, steps=2, quiet=True)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)
