"""Every measure returns exactly what it declares, and broken declarations are refused before anything is trained."""

import math
import sys
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

from pyrovae import InputError, Run, Study, make_pair, open_results, parts, run
from pyrovae.analysis.report import comparison, page, tables
from pyrovae.analysis.report.columns import columns
from pyrovae.data import CohortData, Dataset
from pyrovae.errors import UnsupportedError
from pyrovae.estimators import Estimate, prior_fit
from pyrovae.measures import MeasureResult, Quantity, TrainedRun
from pyrovae.measures.declared import DeclaredMeasure, declared, shipped
from pyrovae.measures.evaluate import Measurements, check
from pyrovae.measures.measure import NATS
from pyrovae.runner.measuring import measured_runs, progress_steps
from pyrovae.runner.remeasure import reevaluate
from pyrovae.study import Cohort, Measure
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.streams import Streams

EVENT = torch.Size([1, 4, 4])
SETTINGS = Measure(
    images=8, outer=8, likelihood_images=4, particles=30, temperatures=2, chains=2, reconstructions=8, samples=2,
    gap_images=4, gap_temperatures=2,
)  # fmt: skip
TINY: dict[str, Any] = {
    **{"steps": 2, "depth": 1, "width": 8, "latent_size": 2, "train_images": 64, "test_images": 32, "batch_size": 16},
    "measure": {"images": 16, "outer": 16, "likelihood_images": 8, "particles": 30, "reconstructions": 8, "probe": 8},
}
EFFECTIVE_RANK = '''"""How many directions of the latent space the codes use."""

import torch

from pyrovae.measures import MeasureResult, Quantity, TrainedRun

QUANTITIES = (
    Quantity(
        "rank_of_means",
        "effective rank of the posterior means, exp of the entropy of the eigenvalues of their covariance",
        unit="1",
        heading="rank of means",
        headline=True,
    ),
)


def measure(run: TrainedRun) -> MeasureResult:
    """exp H(λ / Σλ), λ the eigenvalues of the covariance of E_q(z|x)[z] over training images."""
    eigenvalues = torch.linalg.eigvalsh(run.encodings.train.mean.T.cov()).clamp(min=0)
    shares = eigenvalues / eigenvalues.sum()
    return MeasureResult(rank_of_means=torch.special.entr(shares).sum().exp())
'''


@pytest.fixture(scope="module")
def measured() -> Callable[..., list[Measurements]]:
    """Applies measures to two runs with different β, target rates and validation images."""
    images = 255 * torch.randint(0, 2, (64, *EVENT), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    factors, labels = (torch.rand(40, 2), torch.rand(24, 2)), (torch.zeros(40), torch.ones(24))
    data = CohortData(Dataset(images[:40], images[40:], factors=factors, labels=labels, validation=images[8:32]))
    pairs = [make_pair(Run(depth=1, width=8, latent_size=2, seed=seed), EVENT) for seed in (0, 1)]
    lockstep = Lockstep(pairs, {"beta": torch.tensor([0.1, 1.0])}, target_rates=torch.tensor([5.0, 5.0]))
    streams = Streams([0, 1], images=40, batch_size=8, noise_shapes={"z": torch.Size([2])})

    trained: Any = SimpleNamespace(lockstep=lockstep, streams=streams, data=data, cohort=Cohort((Run(), Run(seed=1))))

    def apply(measures: Sequence[DeclaredMeasure], progress: Callable[[], None] = lambda: None) -> list[Measurements]:
        with mock.patch.object(prior_fit, "STEPS", 3):
            return list(measured_runs(trained, SETTINGS, measures, progress))

    return apply


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Makes a user's module with some declarations and a function, and returns the measure's name."""

    def make(quantities: Any, function: Any, name: str = "mine") -> str:
        made = ModuleType(name)
        made.measure = function  # type: ignore[attr-defined]
        if quantities is not None:
            made.QUANTITIES = quantities  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, made)
        return f"{name}:measure"

    return make


def one(run: TrainedRun) -> MeasureResult:
    return MeasureResult(number=1.0)


NUMBER = Quantity("number", "a number", unit="1")


@pytest.mark.parametrize("name", sorted(parts.names("measure")))
def test_measure_returns_what_it_declares(name: str, measured: Callable[..., list[Measurements]]) -> None:
    (measure,) = declared([name])
    found = measured([measure])
    assert [each.note for each in found] == ["", ""]
    for each, quantity in product(found, measure.quantities):
        values = quantity.attributes(quantity.variable)
        assert values["units"]
        assert values["long_name"]
        if quantity.is_number:
            splits = (3,) if "split" in quantity.dims else ()
            levels = (1,) if "level" in quantity.dims else ()
            for variable in quantity.variables:
                array = each.numbers[quantity.group][variable]
                assert array.shape == (*levels, *splits)
                assert np.isfinite(array[..., :2] if splits else array).all()
        elif "image" in quantity.dims:
            assert each.images[quantity.name].shape == (3, 8)
        elif quantity.group != "vectors":  # these data are images
            assert each.pictures[quantity.group][quantity.variable].ndim == len(quantity.dims)
        if quantity.per_image:
            assert np.isfinite(each.images[quantity.name][1, :4]).all()


def test_measures_announce_their_progress(measured: Callable[..., list[Measurements]]) -> None:
    steps: list[int] = []
    measured(shipped(), lambda: steps.append(1))
    with mock.patch.object(prior_fit, "STEPS", 3):
        expected = progress_steps(shipped(), SETTINGS, 2)
    assert len(steps) == expected - 2 > 0  # one for each run is counted by the caller


def test_headings_and_long_names_are_unique() -> None:
    quantities = [each for measure in shipped() for each in measure.quantities]
    for texts in ([each.heading for each in columns(quantities)], [each.long_name for each in quantities]):
        assert len(set(texts)) == len(texts)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ({"unit": None}, "expected a unit"),
        ({"unit": ""}, r"quantity 'rank': expected a unit, such as \"nats\", or \"1\" for a count, got none"),
        ({"long_name": " "}, "expected a long_name, that explains it"),
        ({"name": "a-b"}, "expected names and dimensions that are identifiers, got 'a-b'"),
        ({"kind": "guess"}, "expected a kind of exact, unbiased, .*, got 'guess'"),
        ({"dims": ("image",)}, r'images as \("split", "image"\)'),
        ({"dims": ("row", "row")}, "expected dims that differ"),
        ({"group": "runs"}, "expected a group other than"),
        ({"headline": True}, "expected a heading for a headline number"),
        ({"dims": ("row",), "heading": "r"}, "only for numbers"),
        ({"heading": "{splits}"}, "expected a heading and a format"),
        ({"heading": "r", "format": ".2q"}, "expected a heading and a format"),
    ],
)
def test_broken_declaration_is_one_clear_line(broken: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        Quantity(**{"name": "rank", "long_name": "effective rank", "unit": "1"} | broken)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (MeasureResult(number=1.0, other=2.0), "expected only what QUANTITIES declares .*, got other too"),
        (MeasureResult(), "expected all that QUANTITIES declares, got no number"),
        ({"number": 1.0}, "expected a MeasureResult, got dict"),
    ],
)
def test_result_must_equal_the_declaration(result: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"measure mine: {message}"):
        check(DeclaredMeasure("mine", one, (NUMBER,), lambda settings: 0), result)


@pytest.mark.parametrize(
    ("quantity", "value", "message"),
    [
        (NUMBER, torch.ones(2, 2), "expected dims"),
        (NUMBER, "many", "could not convert"),
        (NUMBER, torch.ones(3), "values per image need a kind"),
        (Quantity("number", "a number", unit=NATS, kind="unbiased"), 1.0, "has a standard error"),
        (Quantity("number", "a number", unit=NATS, dims=("split",)), 1.0, "got a float instead of a pair"),
        (Quantity("number", "a picture", unit=NATS, dims=("row", "column")), torch.ones(3), "got shape"),
    ],
)
def test_value_of_another_form_is_one_clear_line(
    quantity: Quantity, value: Any, message: str, measured: Callable[..., list[Measurements]]
) -> None:
    measure = DeclaredMeasure("mine", lambda run: MeasureResult(number=value), (quantity,), lambda settings: 0)
    with pytest.raises(InputError, match=message):
        measured([measure])


def test_number_per_image_has_mean_and_standard_error(measured: Callable[..., list[Measurements]]) -> None:
    x = torch.tensor([1.0, 2.0, 6.0])
    quantities = (
        Quantity("mean", "a mean", unit=NATS, kind="unbiased", group="mine", per_image=True),
        Quantity("given", "an estimate", unit=NATS, kind="lower bound", group="mine"),
    )
    given = Estimate(2.0, 0.5, "lower bound")
    measure = DeclaredMeasure("mine", lambda run: MeasureResult(mean=x, given=given), quantities, lambda settings: 0)
    for each in measured([measure]):
        assert each.numbers["mine"]["mean"] == 3
        np.testing.assert_allclose(each.numbers["mine"]["mean_se"], math.sqrt(7 / 3))
        np.testing.assert_allclose(each.images["mean"][1, :3], x)
        assert np.isnan(each.images["mean"][0]).all()
        assert each.numbers["mine"]["given_se"] == 0.5


def test_unsupported_measure_is_skipped_with_a_note(measured: Callable[..., list[Measurements]]) -> None:
    def fail(run: TrainedRun) -> MeasureResult:
        raise UnsupportedError("no encodings")

    broken = DeclaredMeasure("mine", fail, (NUMBER,), lambda settings: 0)
    for each in measured([broken, *declared(["rate_distortion"])]):
        assert each.note == "mine: not measured, no encodings"
        assert set(each.numbers) == {"rate_distortion", "levels"}


@pytest.mark.parametrize(
    ("quantities", "message"),
    [
        (None, "expected QUANTITIES, a tuple of Quantity, in the module mine of 'mine:measure', got none"),
        ([NUMBER], "expected QUANTITIES, a tuple of Quantity, .* got list"),
        (
            (Quantity("active_units", "count", unit="1"),),
            "expected each name once, got 'active_units' from info",
        ),
        ((Quantity("rate_se", "count", unit="1"),), "expected each name once, got 'rate_se' from rate_distortion"),
        ((Quantity("i", "count", unit="1", heading="I"),), "expected each heading once, got 'I' from information"),
    ],
)
def test_declarations_are_checked_before_training(
    quantities: Any, message: str, module: Callable[..., str], tmp_path: Path
) -> None:
    study = Study.load("quick", **TINY).replace(**{"measure.also": [module(quantities, one)]})
    with pytest.raises(InputError, match=message):
        run(study, out=tmp_path / "study", quiet=True)
    assert not (tmp_path / "study").exists()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda run: 1 / 0, "measure mine(:measure)?: expected a result, got ZeroDivisionError"),
        (lambda run: MeasureResult(another=1), "got another too"),
    ],
)
@pytest.mark.parametrize("listed", ["also", "shipped"])
def test_measure_that_fails_is_one_line_before_training(
    function: Any,
    message: str,
    listed: str,
    module: Callable[..., str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    study, name = Study.load("quick", **TINY, beta=1, seed=0), module((NUMBER,), function)
    if listed == "also":
        study = study.replace(**{"measure.also": [name]})
    else:
        monkeypatch.setitem(parts.SHIPPED["measure"], "mine", name)
    with pytest.raises(InputError, match=message) as error:
        run(study, out=tmp_path / "study", quiet=True)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "study" / "study.yaml").exists()


def test_measure_that_fails_afterwards_is_one_line_and_changes_nothing(
    module: Callable[..., str], tmp_path: Path
) -> None:
    run(Study.load("quick", **TINY, beta=1, seed=0), out=tmp_path, quiet=True)
    before, name = (tmp_path / "results.nc").read_bytes(), module((NUMBER,), lambda run: 1 / 0)
    with pytest.raises(InputError, match="measure mine:measure: expected a result, got ZeroDivisionError: division"):
        reevaluate(tmp_path, measures=[name], trust=["mine"])
    assert (tmp_path / "results.nc").read_bytes() == before


def test_one_file_shows_up_wherever_numbers_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rank_of_means.py").write_text(EFFECTIVE_RANK)
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "rank_of_means:measure"
    plain = Study.load("quick", **TINY, beta=[0.1, 1], seed=0)
    tree = run(plain.replace(**{"measure.also": [name]}), out=tmp_path / "with", quiet=True).tree
    ranks = tree["rank_of_means/rank_of_means"]
    assert ((ranks >= 1) & (ranks <= 2)).all()

    # Results are read without the module.
    monkeypatch.delitem(sys.modules, "rank_of_means")
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each != str(tmp_path)])
    results = open_results(tmp_path / "with")
    read = results.tree
    np.testing.assert_array_equal(read["rank_of_means/rank_of_means"], ranks)
    assert "rank_of_means" not in sys.modules
    assert read["rank_of_means/rank_of_means"].attrs["long_name"].startswith("effective rank")
    run(plain, out=tmp_path / "without", quiet=True)
    without = open_results(tmp_path / "without")
    trees = {"with": read, "without": without.tree}
    shown = page.page({"with": results, "without": without}, [], {})
    assert shown.count("<dt>rank of means</dt><dd>effective rank of the posterior means") == 1
    for value in ranks.values.flat:
        assert f"<td>{value:.2f}</td>" in shown
    for joined in (read, comparison.joined(trees)):
        table = tables.measured(joined)["rank_of_means"]
        assert [str(cell) for cell in table.columns[-1].cells] == [f"{value:.2f}" for value in ranks.values.flat]

    # The same measure, afterwards.
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(InputError, match="not trusted"):
        reevaluate(tmp_path / "without", measures=[name])
    _, evaluation = reevaluate(tmp_path / "without", measures=[name], trust=["rank_of_means"])
    assert evaluation.name == "measure=rank_of_means.measure"
    assert set(evaluation.tree.children) == {"runs", "rank_of_means"}
    np.testing.assert_array_equal(evaluation.tree["rank_of_means/rank_of_means"], ranks)
    files = list(tmp_path.glob("without/runs/*/evaluations/*"))
    before = [file.stat().st_mtime_ns for file in files]
    reevaluate(tmp_path / "without", measures=[name], trust=["rank_of_means"])
    assert [file.stat().st_mtime_ns for file in files] == before
    (tmp_path / "rank_of_means.py").write_text(f"{EFFECTIVE_RANK}# changed")
    reevaluate(tmp_path / "without", measures=[name], trust=["rank_of_means"])
    assert not set(before) & {file.stat().st_mtime_ns for file in files}
