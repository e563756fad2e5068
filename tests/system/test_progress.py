"""Progress of a study without a terminal, and its count of steps."""

import pytest

from pyrovae.system.progress import StudyProgress


def test_lines_report_some_of_the_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress(200) as progress:
        task = progress.start("beta 1", 200, done=90)
        for _ in range(110):
            task.advance()
        progress.note("done")
    lines = [line.partition(", about")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [f"beta 1: {step} of 200 steps" for step in (120, 160, 190, 200)] + ["done"]


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress(10, quiet=True) as progress:
        progress.start("beta 1", 10).update(10)
        progress.note("done")
    assert capsys.readouterr().out == ""


def test_restarted_tasks_count_in_full() -> None:
    """The total of a resumed task excludes earlier steps; restarted, it and its parts start from zero."""
    progress = StudyProgress(200, quiet=True)
    progress.start("depth 1", 100, done=40).update(60)
    progress.start("depth 1, measuring", 10).update(5)
    progress.start("depth 10", 100).update(7)
    (overall,) = progress._bar.tasks
    assert (overall.completed, overall.total) == (32, 160)
    progress.restart("depth 1")
    progress.start("depth 1", 100, done=60)
    assert (overall.completed, overall.total) == (7, 140)
