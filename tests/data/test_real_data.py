"""Complete MNIST and Fashion-MNIST, from their files to results: run with -m real."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyrovae import open_results, parts
from pyrovae.data import Source, class_counts, divide

COMMAND = str(Path(sys.executable).with_name("pyrovae"))
DIGITS = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("name", "counts", "mean", "std"),
    [("mnist", DIGITS, 0.1307, 0.3081), ("fashion_mnist", [6000] * 10, 0.2860, 0.3530)],
)
def test_published_training_set_has_the_known_statistics(name: str, counts: list[int], mean: float, std: float) -> None:
    """Class counts, and the widely used mean and standard deviation of the pixels."""
    source: Source = parts.resolve("data", name)()
    assert source.published is not None
    train, test = divide(source, source.published)
    print(f"{name}: {len(train):,} training and {len(test):,} test images, per class {class_counts(source, train)}")
    assert (len(train), len(test)) == (60_000, 10_000)
    assert class_counts(source, train) == dict(enumerate(counts))
    pixels = source.images(train)
    assert (pixels.dtype, pixels.shape[1:]) == (torch.uint8, (1, 28, 28))
    values = pixels.double() / 255
    assert (round(values.mean().item(), 4), round(values.std().item(), 4)) == (mean, std)


@pytest.mark.parametrize(
    ("study", "sides"),
    [("mnist-holdout", (63_042, 6_958)), pytest.param("fashion", (60_000, 10_000), marks=pytest.mark.long)],
)
def test_study_of_real_images_runs_end_to_end(study: str, sides: tuple[int, int], tmp_path: Path) -> None:
    settings = ["train_images=null", "test_images=null", "steps=400", "beta=[0.1,1]", "depth=1", "width=64", "seed=0"]
    overrides = [word for setting in settings for word in ("--set", setting)]
    command = [COMMAND, "run", study, "--compile", "never", *overrides]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    print(done.stdout)
    assert f"{sides[0]:,} training and {sides[1]:,} test images" in done.stdout
    results = open_results(tmp_path / "runs" / study)
    assert results.tree["difficulty"]["images"].isel(beta=0, seed=0).values.tolist() == list(sides)
    cells = results.tree["rate_distortion"].isel(seed=0)
    start = results.tree["curves/distortion"].isel(seed=0, step=0)
    assert (cells["distortion"] < start - 20).all()
    assert (cells["distortion"] > cells["floor"]).all()
    assert (cells["rate"].sel(beta=0.1) > cells["rate"].sel(beta=1) + 5).all()
