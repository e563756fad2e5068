from collections.abc import Iterable

import numpy as np
import pytest
import xarray as xr
from helpers import InMemory

from pyrovae import Study
from pyrovae.analysis.findings import FINDINGS, findings
from pyrovae.analysis.findings.caveats import caveats
from pyrovae.analysis.findings.statistics import Verdict
from pyrovae.store import schema


def study_of(effect: float, noise: float = 1.0, seeds: int = 3, saturated: bool = True) -> InMemory:
    """Distortions that fall by ``effect`` from β = 1 to 0.1, and from one layer to three; G is larger by 30 nats."""
    rng = np.random.default_rng(0)
    values = 100 + noise * rng.normal(size=(2, 200, 2, seeds, 2))
    values[:, :, 0] -= effect
    values[..., 1] -= effect
    dims = ("split", "image", "beta", "seed", "depth")
    coords_in = {"beta": [0.1, 1.0], "depth": [1, 3]}
    coords = {"split": ["train", "test"], **coords_in}
    shape = (2, seeds, 2)
    information = {
        "mutual_information": np.full(shape, 7.99) if saturated else np.full(shape, 5.0),
        "log_n": np.full(shape, 8.0),
        "prior_gap": np.broadcast_to(np.array([50.0, 20.0])[:, None, None], shape).copy(),
        "prior_gap_se": np.full(shape, 0.1),
    }
    images = {"distortion": (dims, values), "reconstruction_distance": (dims, np.full(values.shape, np.nan))}
    bounds = {name: (dims[2:], np.zeros(shape)) for name in ("log_likelihood", "high_pareto_k")}
    runs = {"status": (dims[2:], np.full(shape, "done", object))}
    groups = {
        "likelihood": xr.Dataset(bounds, coords_in),
        "information": xr.Dataset({name: (dims[2:], value) for name, value in information.items()}, coords_in),
        "runs": xr.Dataset(runs, coords_in),
    }
    return InMemory(xr.DataTree.from_dict(groups), xr.Dataset(images, coords))


def about_saturation(study: InMemory) -> list[Verdict]:
    return [verdict for verdict in findings(study) if "log N" in verdict.text]


def outcomes(verdicts: Iterable[Verdict]) -> set[str]:
    return {verdict.outcome for verdict in verdicts}


def test_every_finding_is_declared_once() -> None:
    assert len({finding.text for finding in FINDINGS}) == len(FINDINGS)


@pytest.mark.parametrize(("effect", "outcome"), [(5.0, "supported"), (-5.0, "contradicted"), (0.0, "undecided")])
def test_verdict_follows_the_effect(effect: float, outcome: str) -> None:
    verdicts = findings(study_of(effect))
    assert len(verdicts) == 5  # β and saturation at either depth, and depth
    assert outcomes(verdicts) == {outcome}
    assert all(abs(verdict.contrast.effect.estimate - effect) < 1 for verdict in verdicts)


@pytest.mark.parametrize(("effect", "outcome"), [(5.0, "supported"), (-5.0, "contradicted"), (0.0, "undecided")])
def test_verdict_on_large_beta_follows_training_distortion(effect: float, outcome: str) -> None:
    study = study_of(0.0)
    raised = study.images().assign_coords(beta=[1.0, 4.0])
    raised["distortion"].loc[{"beta": 4.0, "split": "train"}] += effect
    groups = {name: group.to_dataset().assign_coords(beta=[1.0, 4.0]) for name, group in study.tree.children.items()}
    verdicts = findings(InMemory(xr.DataTree.from_dict(groups), raised))
    assert outcomes(each for each in verdicts if each.text.startswith("Raising β from 1 to 4 underfits")) == {outcome}


def test_interval_of_one_seed_is_over_images_only() -> None:
    assert {verdict.contrast.over for verdict in findings(study_of(5.0, seeds=1))} == {"images only"}
    assert {verdict.contrast.over for verdict in findings(study_of(5.0))} == {"images and seeds"}


def test_central_finding_names_saturated_betas_and_growth_of_gap() -> None:
    # The half width is 1.96 √2 · 0.1.
    text = "After I has reached log N at β ≤ 1, test distortion keeps falling to β = 0.1, while G grows by"
    assert [verdict.text for verdict in about_saturation(study_of(5.0))] == [f"{text} 30.0 ± 0.3 nats"] * 2


def test_central_finding_is_undecided_without_two_saturated_betas() -> None:
    verdicts = about_saturation(study_of(5.0, saturated=False))
    assert outcomes(verdicts) == {"undecided"}
    reasons = {verdict.contrast.note for verdict in verdicts}
    assert reasons == {"I reaches log N at no β, and a comparison needs two values of β"}
    assert {verdict.text for verdict in verdicts} == {
        "After I has reached log N, test distortion keeps falling, while G grows"
    }
    study = study_of(5.0)
    study.tree["information"]["mutual_information"].loc[{"beta": 1.0, "seed": 1}] = 7.5
    reasons = {verdict.contrast.note for verdict in about_saturation(study)}
    assert reasons == {"I reaches log N only at β = 0.1, and a comparison needs two values of β"}


def test_central_finding_reverses_where_the_gap_shrinks() -> None:
    study = study_of(5.0)
    study.tree["information"]["prior_gap"][:] = study.tree["information"]["prior_gap"].values[::-1]
    assert outcomes(about_saturation(study)) == {"contradicted"}
    study.tree["information"]["prior_gap"][:] = 20 + np.array([0.0, 1.0, -1.0])[None, :, None]
    assert outcomes(about_saturation(study)) == {"undecided"}


def test_central_finding_says_where_information_is_not_measured() -> None:
    study = study_of(5.0)
    study.tree["information"]["mutual_information"].loc[{"beta": 0.1, "seed": 0}] = np.nan
    verdicts = about_saturation(study)
    assert outcomes(verdicts) == {"undecided"}
    assert {verdict.contrast.note for verdict in verdicts} == {"I is not measured in every run at β = 0.1"}


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_non_finite_distortion_of_some_images_decides_nothing(value: float) -> None:
    study = study_of(5.0)
    study.images()["distortion"].loc[{"beta": 0.1, "seed": 1, "image": slice(0, 80)}] = value
    verdicts = findings(study)
    assert outcomes(verdicts) == {"undecided"}
    assert all("not finite" in verdict.contrast.note for verdict in verdicts)


def test_padding_is_ignored() -> None:
    study = study_of(5.0)
    study.images()["distortion"].loc[{"image": slice(150, None)}] = np.nan
    assert outcomes(findings(study)) == {"supported"}


def test_run_that_is_not_done_decides_nothing() -> None:
    study = study_of(5.0)
    study.tree["runs"]["status"].loc[{"beta": 1.0, "seed": 2}] = "pending"
    assert outcomes(each for each in findings(study) if each.text.startswith("Lowering")) == {"undecided"}


def test_numbers_from_an_earlier_step_are_a_caveat() -> None:
    tree = schema.empty(Study.of(name="mine", steps=2400, beta=[0.1, 1, 4], seed=[0, 1]))
    tree["runs"]["step"][:] = [[1200, 1200], [600, -1], [2400, 2400]]
    tree["runs"]["status"].loc[{"beta": 4.0}] = "done"
    assert caveats(tree) == [
        "1 of 6 runs are not done yet",
        "3 of 6 runs have not reached step 2,400: their numbers are from step 600 to 1,200; 'pyrovae run' continues "
        "them",
    ]


def test_diverged_run_is_a_caveat_and_supports_no_finding() -> None:
    study = study_of(5.0)
    status = xr.full_like(study.tree["information"]["log_n"], "done", dtype=object)
    status.loc[{"beta": 0.1, "seed": 1, "depth": 3}] = "diverged"
    diverged_at = xr.where(status == "diverged", 1234, -1)
    reason = xr.full_like(status, "the guide has auxiliary sites")
    facts = {"diverged_at": diverged_at, "step": xr.full_like(diverged_at, 4), "skipped": reason, "versions": reason}
    runs = {"status": status, **facts}
    study.tree["runs"] = xr.DataTree(xr.Dataset(runs))
    lowering = [verdict for verdict in findings(study) if verdict.text.startswith("Lowering")]
    found = {verdict.contrast.where: verdict.outcome for verdict in lowering}
    assert found == {"depth 1": "supported", "depth 3": "undecided"}
    study.tree["curves"] = xr.DataTree(
        xr.Dataset({"loss": (["split", "step"], [[9.0, 1, 1]])}, {"split": ["train"], "step": [0, 3, 4]})
    )
    diverged, skipped, *_ = caveats(study.tree)
    assert diverged.startswith("the run at beta=0.1, seed=1, depth=3 diverged at step 1,234")
    assert skipped == "the guide has auxiliary sites"
