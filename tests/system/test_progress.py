"""Progress of a study without a terminal, and the time that is left."""

import io
import json
from pathlib import Path

import pytest

from pyrovae.system import progress as progressing
from pyrovae.system.progress import Expected, Forecast, StudyProgress

RECORDED = sorted(Path(__file__).parent.glob("recorded_*.json"))


class Clock:
    """The time in seconds, which stands still unless a test changes it."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize("file", RECORDED, ids=lambda file: file.stem)
def test_time_left_is_close_in_recorded_runs(file: Path) -> None:
    recorded = json.loads(file.read_text())
    clock, parts = Clock(), {}
    forecast = Forecast([Expected(*part) for part in recorded["expected"]], clock=clock)
    for seconds, phase, label, share in recorded["events"]:
        clock.now = seconds
        if share is None:
            parts[phase, label] = forecast.begin(phase, label)
        else:
            forecast.advance(parts[phase, label], share)
        left, actual = forecast.left(), recorded["end"] - seconds
        if seconds > 10 and actual > 0:
            assert left is not None
            assert abs(left - actual) <= max(5.0, 0.3 * actual), f"after {seconds} s"


def test_time_left_is_that_of_expected_parts_at_first() -> None:
    clock = Clock()
    forecast = Forecast([Expected("train", "a", 60), Expected("measure", "a", 30)], clock=clock)
    assert forecast.left() == 90
    forecast.begin("train", "a")
    clock.now = 20
    assert forecast.left() == 70


def test_time_left_is_unknown_before_anything_is_expected() -> None:
    forecast = Forecast(clock=Clock())
    forecast.begin("plan", "")
    assert forecast.left() is None
    forecast.expect([Expected("train", "a", 60)])
    assert forecast.left() == 60


def test_sizes_that_are_no_seconds_are_timed_once_something_is_done() -> None:
    clock = Clock()
    forecast = Forecast([Expected("train", "a", 100), Expected("measure", "a", 50)], timed=False, clock=clock)
    part = forecast.begin("train", "a")
    assert forecast.left() is None
    clock.now = 30.0
    forecast.advance(part, 0.5)
    assert forecast.left() == pytest.approx((50 + 50) * 30 / 50)


def test_tasks_at_the_same_time_share_what_is_left() -> None:
    clock = Clock()
    forecast = Forecast([Expected("train", label, 100) for label in "ab"], timed=False, clock=clock)
    parts = [forecast.begin("train", label) for label in "ab"]
    clock.now = 10.0
    for part in parts:
        forecast.advance(part, 0.1)
    assert forecast.left() == pytest.approx(90)


def test_forgotten_tasks_are_done_again() -> None:
    forecast = Forecast([Expected("train", label, 10) for label in ("depth 1", "depth 10")], clock=Clock())
    part = forecast.begin("train", "depth 1")
    forecast.advance(part, 1.0)
    forecast.forget("depth 1")
    forecast.expect([Expected("train", "depth 1, 1 of 2 runs", 5)] * 2)
    assert forecast.left() == 20


def test_lines_name_each_part_and_then_what_is_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progressing, "INTERVAL", 0.0)
    with StudyProgress([Expected("train", "beta 1", 100)], timed=False) as progress:
        task = progress.start("beta 1", 200, done=90)
        task.numbers = "loss 3.0"
        task.update(145)
        progress._ended.wait(1.5)
        progress.note("done")
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ("compile beta 1", "done")
    assert "train beta 1" in lines
    assert any(line.startswith("train beta 1: 145 of 200 steps; loss 3.0; about ") for line in lines)


def test_lines_show_a_question_mark_for_what_the_encoding_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, encoding="cp1252", write_through=True))
    with StudyProgress() as progress:
        progress.start("β 1 – 3", 10).update(10)
    assert written.getvalue().decode("cp1252").splitlines()[0] == "compile ? 1 – 3"


def test_quiet_progress_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with StudyProgress(quiet=True) as progress:
        progress.start("beta 1", 10).update(10)
        progress.note("done")
    assert capsys.readouterr().out == ""
