"""One process at a time works on a cohort."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyrovae.runner.cohort import _exclusively
from pyrovae.system import atomic
from pyrovae.system.progress import StudyProgress
from pyrovae.training.trainer import Interrupted


def test_second_process_says_once_that_it_waits_until_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress, notes, answers = StudyProgress(quiet=True), [], iter([False, False, True])
    monkeypatch.setattr(progress, "note", notes.append)
    monkeypatch.setattr(progress, "stop_requested", lambda: next(answers))

    def work() -> None:
        with _exclusively(tmp_path / "lock", "depth 3", progress):
            raise AssertionError("the lock is held")

    with _exclusively(tmp_path / "lock", "depth 3", progress), ThreadPoolExecutor() as pool:
        error = pool.submit(work).exception()
    assert isinstance(error, Interrupted)
    assert notes == ["depth 3: waits for another process that is working on it"]
    with atomic.exclusive(tmp_path / "lock", lambda: False) as acquired:
        assert acquired
