"""Speeds are kept where they mean something, and read back."""

import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from helpers import STUDY

from pyrovae.build import make_cohort_data
from pyrovae.runner.setup import start
from pyrovae.runner.speed import ENOUGH, Speed, Speeds, step_time
from pyrovae.system.device import find_device
from pyrovae.system.progress import StudyProgress
from pyrovae.training.trainer import Training

CPU = find_device("cpu")


@pytest.fixture
def training() -> Training:
    cohort = STUDY.cohorts()[0]
    return start(STUDY.measure, cohort, make_cohort_data(cohort.runs))[0]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time in seconds, which stands still unless a test changes it."""
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return now


def train(training: Training, clock: list[float], steps: int, *, stop: bool = False) -> Speed | None:
    """Times steps of half a second after a first one of eight, and a second after the last; returns what is kept."""
    speeds = Speeds(CPU)
    task = StudyProgress(quiet=True).start("", 1000, done=100)

    with suppress(KeyboardInterrupt), speeds.timing_training(training, "auto", task):
        for step in range(steps):
            clock[0] += 8 if step == 0 else 0.5
            task.update(101 + step)
        clock[0] += 1
        if stop:
            raise KeyboardInterrupt
    return speeds.of_training(training.cohort, "vmapped")


@pytest.mark.parametrize("stop", [False, True])
def test_first_step_is_kept_apart_from_the_others(training: Training, clock: list[float], stop: bool) -> None:
    kept = train(training, clock, ENOUGH + 1, stop=stop)
    each = (ENOUGH * 0.5 + 1) / ENOUGH
    assert kept == Speed(first=8 - each, each=each)


def test_speed_of_few_steps_is_not_kept(training: Training, clock: list[float]) -> None:
    assert train(training, clock, ENOUGH) is None


def test_step_time_is_the_shortest_after_the_first_step(
    training: Training, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    durations = [0.1, 1.5, 0.5, 1, 7]

    def step() -> torch.Tensor:
        clock[0] += durations.pop(0)
        return torch.zeros(2)

    monkeypatch.setattr(training, "stepper", lambda *_: step)
    assert step_time(training, 3.0) == 0.5
    assert durations == [7]


def test_damaged_or_unwritable_speeds_are_unknown(tmp_path: Path) -> None:
    speeds = Speeds(CPU)
    cohort = STUDY.cohorts()[0]
    with speeds.timing_measuring(cohort, STUDY.measure):
        pass
    (file,) = (tmp_path / "cache").rglob("*.json")
    assert speeds.of_measuring(cohort.shared, STUDY.measure) == Speed(**json.loads(file.read_text()))
    for damaged in ("", "{", '{"each": -1}', '{"each": Infinity}', "[]"):
        file.write_text(damaged)
        assert speeds.of_measuring(cohort.shared, STUDY.measure) is None
    file.unlink()
    file.parent.rmdir()
    file.parent.write_text("in the way")
    with speeds.timing_measuring(cohort, STUDY.measure):
        pass
    assert speeds.of_measuring(cohort.shared, STUDY.measure) is None
