"""Kept results: one small file, without weights, which opens by the name of the study."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from helpers import no_drawing

from pyrovae import InputError, Results, Study, open_results, run
from pyrovae.analysis.findings.cells import StudyCells
from pyrovae.cli import main
from pyrovae.runner.diagnose import diagnose_run
from pyrovae.runner.folders import export
from pyrovae.runner.remeasure import reevaluate
from pyrovae.runner.reporting import compare, draw, draw_again
from pyrovae.store import layout
from pyrovae.store.condensed import condensed

STUDY = Study(
    name="tiny", train_images=64, test_images=64, beta=[0.1, 1], depth=[1, 2], seed=[0, 1], width=4, latent_size=2,
    steps=4, batch_size=16,
    measure={"images": 64, "outer": 16, "likelihood_images": 16, "particles": 30, "reconstructions": 64, "probe": 8,
             "points": 2, "gap_images": 8, "gap_temperatures": 4},
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kept") / "tiny"
    with no_drawing():
        run(STUDY, folder, quiet=True)
        reevaluate(folder, samples=2)
        reevaluate(folder, prior="aggregate")
        reevaluate(folder, measures=["generalization_gap"])
        reevaluate(folder, measures=["fixed_decoder_curve"])
    export(folder, "netcdf", folder / "results.kept.nc")
    return folder


@pytest.fixture
def name(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name under which the study is kept, in a working directory without its folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(layout, "kept", lambda: {"tiny": whole / "results.kept.nc"})
    return "tiny"


def test_findings_of_kept_results_are_those_of_the_folder(name: str, whole: Path) -> None:
    kept, folder = open_results(name), open_results(whole)
    assert kept.is_kept
    numbers = {name: len(each.findings()) for name, each in folder.evaluations.items()}
    curve, gap = ("measure=fixed_decoder_curve", "measure=generalization_gap")
    assert numbers == {curve: 0, gap: 6, "prior=aggregate": 9, "samples=2": 7}
    assert kept.evaluations.keys() == numbers.keys()
    for ours, theirs in ((kept, folder), *((kept.evaluations[name], folder.evaluations[name]) for name in numbers)):
        pd.testing.assert_frame_equal(ours.findings().frame(), theirs.findings().frame(), rtol=1e-9)
        for by in ("test R + D", "test log p(x)"):
            assert list(map(repr, ours.best("beta", by))) == list(map(repr, theirs.best("beta", by)))


def test_kept_values_per_image_are_few(name: str, whole: Path) -> None:
    known = [StudyCells.of(open_results(each)).images["distortion"].notnull() for each in (name, whole)]
    assert [int(each.isel(beta=0, seed=0, depth=0, split=0).sum()) for each in known] == [17, 64]


def test_kept_numbers_are_those_of_the_folder(name: str, whole: Path) -> None:
    kept, folder = open_results(name), open_results(whole)
    assert kept.study == folder.study
    pd.testing.assert_frame_equal(kept.table(), folder.table())
    few, many = (each.images(beta=1.0, depth=[2]).mean("image") for each in (kept, folder))
    for variable in few.data_vars:
        np.testing.assert_allclose(few[variable], many[variable])


def test_results_of_labelled_images_can_be_kept(whole: Path) -> None:
    images = open_results(whole).images()
    labels = np.zeros((images.sizes["split"], images.sizes["image"]))
    few = condensed(images.assign_coords(label=(("split", "image"), labels)))
    xr.testing.assert_identical(few, condensed(images))


def test_a_folder_goes_before_kept_results(name: str, whole: Path, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(whole)
    assert not open_results(name).is_kept


def test_a_new_study_does_not_start_from_kept_results(name: str) -> None:
    assert (Results.create(name, STUDY, lambda *_: None).tree["runs"]["status"] == "pending").all()  # type: ignore[arg-type, return-value]


@pytest.mark.long
@pytest.mark.usefixtures("one_figure")
def test_kept_results_have_a_report_and_compare(name: str, whole: Path, tmp_path: Path) -> None:
    draw(open_results(name))
    assert draw_again(name).stat().st_size > 1000
    assert open_results(name).is_kept  # although there is a folder now
    assert compare([name, whole], tmp_path / "both").keys() == {name, str(whole)}


def test_commands_say_that_results_are_kept(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for arguments in (["show", name, "findings"], ["studies"]):
        monkeypatch.setattr("sys.argv", ["pyrovae", *arguments])
        with pytest.raises(SystemExit):
            main()
    out, err = capsys.readouterr()
    assert "Lowering β from 1 to 0.1" in out
    assert err == "pyrovae: tiny: no folder of this name holds a study, so these are its kept results\n"


def test_what_needs_weights_says_how_to_train_them(name: str) -> None:
    kept, point = open_results(name), {"beta": 1, "depth": 1, "seed": 0}
    for work in (
        lambda: kept.pair(**point),
        lambda: kept.grow(seed=[2]),
        lambda: kept.swap_prior("mixture"),
        lambda: reevaluate(name, samples=3),
        lambda: diagnose_run(name, point),
    ):
        with pytest.raises(InputError, match=r"kept results, which have none; 'pyrovae run tiny' trains them"):
            work()
    assert not Path(name).exists()


def test_shipped_results_are_small_and_of_their_study() -> None:
    assert layout.kept()
    for name, file in layout.kept().items():
        kept = open_results(name)
        assert file.stat().st_size < 1_000_000
        assert kept.tree.attrs["command"].startswith(f"pyrovae run {name}")
        assert kept.findings()
