"""Memory of one process that runs many studies."""

import gc
import os
from pathlib import Path

import psutil
import pytest

from pyrovae import Study, run
from pyrovae.runner.remeasure import reevaluate
from pyrovae.runner.reporting import compare, draw_again

#: Growth in bytes that may be fragmentation.
SLACK = 16 * 2**20


@pytest.mark.long
def test_memory_is_constant_over_many_studies(tmp_path: Path) -> None:
    """Trains, re-evaluates, draws and compares a study PYROVAE_SOAK times."""
    study = Study(
        name="soak", depth=[1, 2], width=8, latent_size=2, beta=[0.1, 1], steps=30, batch_size=32, train_images=128,
        test_images=64, measure={"particles": 4, "reconstructions": 8, "images": 64, "outer": 64, "probe": 32},
    )  # fmt: skip
    sizes = []
    for number in range(int(os.environ.get("PYROVAE_SOAK", "20"))):
        folder = tmp_path / str(number % 2)
        (folder / "results.nc").unlink(missing_ok=True)
        for file in list(folder.glob("runs/*/*"))[:3]:
            file.unlink()
        run(study, folder, quiet=True)
        reevaluate(folder, samples=2)
        draw_again(folder)
        if number % 2:
            compare([folder, tmp_path / "0"], tmp_path / "both")
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss)
    early, late = max(sizes[:5]), max(sizes[-5:])
    assert late < early + SLACK, [size // 2**20 for size in sizes]
