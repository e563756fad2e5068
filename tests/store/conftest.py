"""A finished study for the tests of its folder, and what these tests observe."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers import STORED, no_drawing

from pyrovae import run
from pyrovae.runner.remeasure import reevaluate
from pyrovae.system.progress import ProgressTask
from pyrovae.training.trainer import Training


@pytest.fixture(scope="session")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study that was evaluated once more; tests read it."""
    folder = tmp_path_factory.mktemp("stored") / "study"
    with no_drawing():
        run(STORED, folder, quiet=True)
        reevaluate(folder, samples=2)
    return folder


@pytest.fixture
def folder(stored: Path, tmp_path: Path) -> Path:
    """A copy of its folder; tests change it."""
    return Path(shutil.copytree(stored, tmp_path / "study"))


@pytest.fixture(autouse=True)
def _no_drawing() -> Iterator[None]:
    with no_drawing():
        yield


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[tuple[frozenset[str], int]]:
    """The trainings that begin: the keys of the runs, and the steps that they have done."""
    begun: list[tuple[frozenset[str], int]] = []
    train = Training.run

    def noted(self: Training, *, task: ProgressTask, **options: object) -> None:
        if self.step < self.cohort.shared.steps:
            begun.append((frozenset(self.cohort.keys), self.step))
        train(self, task=task, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Training, "run", noted)
    return begun
