"""Extreme settings and data: a correct result, or one clear line."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyrovae import InputError, Results, Study, open_results, run
from pyrovae.analysis.findings import findings
from pyrovae.analysis.findings.caveats import caveats
from pyrovae.analysis.report import tables
from pyrovae.analysis.report.provenance import provenance
from pyrovae.runner.diagnose import diagnose_run
from pyrovae.store.layout import RunFolder
from pyrovae.study import SPLITS, key_of
from pyrovae.system import tensor_file

STUDY = Study(
    name="edge", depth=1, width=8, latent_size=2, train_images=32, test_images=16, batch_size=8, steps=30,
    beta=[0.1, 1], checkpoint_every=10,
    measure={"images": 16, "outer": 16, "particles": 4, "reconstructions": 4, "points": 5},
)  # fmt: skip


def _ran(folder: Path, **settings: Any) -> Results:
    """The results of a study, with a caveat for every run whose numbers are not finite."""
    results = run(STUDY.replace(**settings), folder, quiet=True, compile="never")
    runs, cells = results.tree["runs"].to_dataset(), results.tree["rate_distortion"].to_dataset()
    diverged = runs["status"] == "diverged"
    assert sum("diverged at step" in line for line in caveats(results.tree)) == int(diverged.sum())
    assert set(runs["status"].values[~diverged.values]) <= {"done"}
    # Only the weights of a diverged run's last good checkpoint are known to be finite.
    for name in ("distortion", "rate"):
        assert np.isfinite(cells[name].where(~diverged, 0)).all(), name
    np.testing.assert_allclose(cells["elbo"], -cells["distortion"] - cells["rate"], rtol=1e-6)
    assert not (cells["distortion"] < cells["floor"] - 1e-3).any()
    for table in [*tables.measured(results.tree).values(), *provenance(results.tree)]:
        assert table.columns
    assert str(findings(results))
    return results


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 10},
        pytest.param({"learning_rate": 10, "guide": "flow"}, marks=pytest.mark.long),
        pytest.param({"learning_rate": 10, "prior": "vamp", "components": 8}, marks=pytest.mark.long),
        pytest.param({"learning_rate": 10, "prior": "flow"}, marks=pytest.mark.long),
        pytest.param({"learning_rate": 10, "model": "hierarchical", "guide": "hierarchical"}, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_high_learning_rates_end_in_numbers_or_a_caveat(settings: dict[str, Any], tmp_path: Path) -> None:
    _ran(tmp_path / "study", **settings)


@pytest.mark.parametrize(
    ("settings", "diverged"),
    [
        ({"learning_rate": 1e300}, [True, True]),
        # The squares of these gradients overflow, so that Adam never moves the weights.
        ({"beta": [1e-30, 1e30]}, [False, True]),
        pytest.param({"beta": [1e29, 1e30], "warmup": 1, "cycles": 30}, [True, True], marks=pytest.mark.long),
        pytest.param({"likelihood": "gaussian", "noise_scale": 1e-15}, [True, True], marks=pytest.mark.long),
    ],
    ids=str,
)
def test_diverged_runs_are_marked(settings: dict[str, Any], diverged: list[bool], tmp_path: Path) -> None:
    results = _ran(tmp_path / "study", **settings)
    assert (results.tree["runs/status"] == "diverged").values.flatten().tolist() == diverged
    diverged_at = results.tree["runs/diverged_at"].values.flatten()
    assert ((diverged_at >= 0) == diverged).all()
    assert (diverged_at <= 10).all(), "it is found at the first checkpoint"


@pytest.mark.parametrize(
    "lost",
    [
        "runs/*/*",
        *(pytest.param(f"runs/*/{name}", marks=pytest.mark.long) for name in ("weights.safetensors", "record.nc")),
    ],
)
def test_diverged_run_is_trained_again_if_its_files_are_gone(lost: str, tmp_path: Path) -> None:
    settings = {"beta": [1e-30, 1e30]}
    before = _ran(tmp_path / "study", **settings).tree["runs"].to_dataset()
    files = list(tmp_path.glob(f"study/{lost}"))
    assert files
    for file in files:
        file.unlink()
    after = _ran(tmp_path / "study", **settings).tree["runs"].to_dataset()
    assert after["status"].values.flatten().tolist() == ["done", "diverged"]
    assert (after["diverged_at"] == before["diverged_at"]).all()


def test_smallest_sizes_work(tmp_path: Path) -> None:
    """One latent dimension, one run, one image per batch; and two images, each the other's neighbour."""
    one = _ran(tmp_path / "one", latent_size=1, beta=1, batch_size=1)
    assert one.tree["runs/status"].item() == "done"
    assert one.tree["information/mutual_information"].item() <= np.log(16)
    two = _ran(tmp_path / "two", train_images=2, test_images=2, batch_size=2)
    assert (two.tree["information/mutual_information"] <= np.log(2)).all()
    with pytest.raises(InputError, match="train_images: input should be greater than or equal to 2, got 1"):
        STUDY.replace(train_images=1)


@pytest.mark.parametrize(
    ("likelihood", "grey"),
    [("bernoulli", 0), ("continuous_bernoulli", 1), ("gaussian_per_pixel", 0), ("discretised_logistic", 0.2)],
)
def test_identical_images_give_correct_results(likelihood: str, grey: float, tmp_path: Path) -> None:
    """All training images are equally near, and z carries no information."""
    np.savez(tmp_path / "alike.npz", images=np.full((64, 8, 8), float(grey)))
    results = _ran(tmp_path / "study", data=str(tmp_path / "alike.npz"), split="random", likelihood=likelihood)
    assert (results.tree["runs/status"] == "done").all()
    assert (results.tree["difficulty/pixel_distance"] == 0).all()
    perplexity = results.tree["memorisation/perplexity"]
    np.testing.assert_allclose(perplexity.sel(split="test"), 32, rtol=1e-2)
    cells = results.tree["rate_distortion"].to_dataset()
    difference = cells["distortion"].diff("split").squeeze("split")
    assert (abs(difference) < 5 * np.hypot(*(cells["distortion_se"].sel(split=split) for split in SPLITS))).all()


OWN = """
import torch
from pyrovae.data import Source

def source(value):
    images = torch.rand(64, 1, 8, 8)
    images[7, 0, 3, 3] = value
    return lambda: Source("own", 64, lambda rows: images[rows])

nan, inf, negative = map(source, (float("nan"), float("inf"), -1.0))
"""


@pytest.mark.parametrize("value", ["nan", "inf", "negative"])
def test_non_finite_or_unsupported_pixels_are_refused(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_images.py").write_text(OWN, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    for likelihood in ("bernoulli", "gaussian") if value != "negative" else ("bernoulli",):
        study = STUDY.replace(data=f"own_images:{value}", split="random", likelihood=likelihood)
        with pytest.raises(InputError, match=r"likelihood: '\w+' on .*: expected values in|expected finite"):
            run(study, tmp_path / "study", quiet=True)
    assert not (tmp_path / "study" / "study.yaml").exists()


def test_empty_classes_are_refused(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((48, 8, 8))
    np.savez(tmp_path / "classes.npz", images=images, labels=np.where(np.arange(48) < 2, 3, np.arange(48) % 2))
    held = STUDY.replace(
        data=str(tmp_path / "classes.npz"), split="held_out", held_out="2", train_images=None, test_images=None
    )
    with pytest.raises(InputError, match="held_out"):
        run(held, tmp_path / "study", quiet=True)
    each = STUDY.replace(data=str(tmp_path / "classes.npz"), split="random", images_per_class=10, train_images=None)
    with pytest.raises(InputError, match="images_per_class: expected"):
        run(each, tmp_path / "study", quiet=True)


def test_non_finite_weights_in_a_checkpoint_are_refused(tmp_path: Path) -> None:
    run(STUDY, tmp_path / "study", quiet=True)
    file = RunFolder.of(tmp_path / "study", key_of(open_results(tmp_path / "study").run(beta=1))).weights
    groups, metadata = tensor_file.load(file)
    next(iter(groups["params"].values())).flatten(1)[:, 0] = torch.nan
    tensor_file.save(file, groups, metadata)
    with pytest.raises(InputError, match="is missing, has another shape or is not finite"):
        open_results(tmp_path / "study").pair(beta=1)
    RunFolder.of(tmp_path / "study", key_of(open_results(tmp_path / "study").run(beta=1))).record().unlink()
    with pytest.raises(InputError, match="is missing, has another shape or is not finite"):
        run(STUDY, tmp_path / "study", quiet=True)


def test_diverged_runs_are_not_diagnosed(tmp_path: Path) -> None:
    """Its weights are finite, but the scales of q(z|x) are infinite."""
    run(STUDY, tmp_path / "study", quiet=True)
    file = RunFolder.of(tmp_path / "study", key_of(open_results(tmp_path / "study").run(beta=1))).weights
    groups, metadata = tensor_file.load(file)
    for name, weights in groups["params"].items():
        weights[:] = 1e10 if name.startswith("guide.") and name.endswith("bias") else weights
    tensor_file.save(file, groups, metadata)
    with pytest.raises(InputError, match="expected a finite ELBO of these images, got none: the run has diverged"):
        diagnose_run(tmp_path / "study", {"beta": 1})
