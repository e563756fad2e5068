"""How fast this machine trains and measures: kept from earlier runs in the platform's cache folder, or tried."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field

from pyrovae.data import CohortData
from pyrovae.measures.declared import of_settings
from pyrovae.runner.measuring import measured_runs
from pyrovae.study import PER_RUN, Cohort, Measure, Run
from pyrovae.study.keys import identity
from pyrovae.system.device import device_name
from pyrovae.system.execution import Compile, ExecutionMode
from pyrovae.system.measured import Measured
from pyrovae.system.memory import freed_memory_kept
from pyrovae.system.progress import ProgressTask, StudyProgress
from pyrovae.training.modes import candidate_modes
from pyrovae.training.trainer import Training

#: Fewest steps whose time says how long others take.
ENOUGH = 50
#: Seconds that figures and report take if it is not known.
DRAWING = 6.0
#: Seconds above which a run that is measured for its time is disturbed too little to measure another one.
LONG = 1.0
#: How many times fewer training images the smaller of two subsets has.
SUBSET = 8
#: Most particles for each image with which a run is measured for its time.
PARTICLES = 256


class Speed(BaseModel):
    """How long steps of training take, or the measuring of runs.

    Attributes:
        first: additional seconds of the first one, such as those of compilation.
        each: seconds of each one.

    Example:
        >>> Speed(first=2, each=0.5).seconds(10), Speed(first=2, each=0.5).seconds(0)
        (7.0, 0.0)
    """

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)
    first: float = Field(0.0, ge=0)
    each: float = Field(gt=0)

    def seconds(self, number: int) -> float:
        """Seconds that so many of them take."""
        return self.first + self.each * number if number else 0.0


class Speeds:
    """The speeds of a device of this machine, by what they depend on."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._measured = Measured("speeds", device_name(device))

    def of_training(self, cohort: Cohort, mode: ExecutionMode) -> Speed | None:
        """The speed of steps of a cohort, in the execution mode that it tries first; None if it is unknown."""
        return self._load(_steps(cohort, mode))

    def of_measuring(self, run: Run, settings: Measure) -> Speed | None:
        """The speed of measuring such runs; None if it is unknown."""
        return self._load(_measuring(run, settings))

    @contextmanager
    def timing_training(self, training: Training, compile: Compile, task: ProgressTask) -> Iterator[None]:
        """Keeps the speed of the steps inside the block if there are enough, even if they are interrupted."""
        cohort, before = training.cohort, training.lockstep.mode
        mode = candidate_modes(self.device, cohort.shared.steps, compile, before)[0]
        begun = time.perf_counter()
        try:
            yield
        finally:
            steps = task.done - task.resumed_at - 1
            if steps >= ENOUGH:
                each = (time.perf_counter() - begun - task.first_step) / steps
                self._save(_steps(cohort, mode), Speed(first=max(0.0, task.first_step - each), each=each))

    def of_drawing(self, runs: int) -> float:
        """Seconds to draw figures and report of a study of so many runs; a guess if it is unknown."""
        known = self._load(["drawing", runs])
        return DRAWING if known is None else known.each

    @contextmanager
    def timing_drawing(self, runs: int) -> Iterator[None]:
        """Keeps the time that the block takes to draw a study of so many runs."""
        begun = time.perf_counter()
        yield
        self._save(["drawing", runs], Speed(each=time.perf_counter() - begun))

    @contextmanager
    def timing_measuring(self, cohort: Cohort, settings: Measure) -> Iterator[None]:
        """Keeps the speed at which the block measures the runs of a cohort."""
        begun = time.perf_counter()
        yield
        each = (time.perf_counter() - begun) / len(cohort.runs)
        self._save(_measuring(cohort.shared, settings), Speed(each=each))

    def _save(self, what: list[Any], speed: Speed) -> None:
        self._measured.save(speed.model_dump(), *what)

    def _load(self, what: list[Any]) -> Speed | None:
        try:
            return Speed.model_validate(self._measured.load(*what))
        except ValueError:
            return None


def step_time(training: Training, seconds: float) -> float:
    """Seconds of an uncompiled step of a training: the fastest in about so many seconds after a first one.

    On a busy machine, others wait for a core at each operation, and take ten times as long.

    Args:
        training: a training for this purpose alone, which is not continued.
    """
    with freed_memory_kept(), StudyProgress(quiet=True) as progress:
        step = training.stepper("never", progress)
        step().sum().item()  # waits for the device
        ends = [time.perf_counter()]
        while len(ends) == 1 or ends[-1] - ends[0] < seconds:
            step().sum().item()
            ends.append(time.perf_counter())
        return _shortest(ends)


def measuring_time(training: Training, settings: Measure, images: int) -> float:
    """Seconds that measuring a run with so many training images takes, apart from annealing, from two subsets of them.

    Many particles are tried with two smaller numbers of them. The first run of a cohort computes what all of its runs
    share, and of the others, the fastest is least disturbed. If one takes longer than `LONG`, it is the last.

    Args:
        training: a training of several runs for this purpose alone, which is not continued, with some of the images.
    """
    data = training.data.of(0)
    many = len(data.train)
    few = min(many - 1, max(many // SUBSET, settings.most_images))
    short = {"temperatures": min(settings.temperatures, 1), "gap_temperatures": 1}

    def tried(size: int, particles: int) -> float:
        training.data = CohortData(data.with_train(slice(size)))
        trial = settings.model_copy(update=short | {"particles": particles})
        ends = [time.perf_counter()]
        for number, _ in enumerate(measured_runs(training, trial, of_settings(trial))):
            ends.append(time.perf_counter())
            if number and ends[-1] - ends[-2] > LONG:
                break
        return _shortest(ends)

    def of_all_images(particles: int) -> float:
        return _extended((few, many), (tried(few, particles), tried(many, particles)), images)

    if settings.particles <= PARTICLES:
        return of_all_images(settings.particles)
    tries = (PARTICLES // 2, PARTICLES)
    return _extended(tries, (of_all_images(tries[0]), of_all_images(tries[1])), settings.particles)


def _shortest(ends: list[float]) -> float:
    """The shortest time between two that follow each other."""
    return min(after - before for before, after in pairwise(ends))


def _extended(x: tuple[int, int], seconds: tuple[float, float], to: int) -> float:
    """The line through two points at a third place, level if it would fall."""
    return seconds[1] + max(0.0, seconds[1] - seconds[0]) / (x[1] - x[0]) * (to - x[1])


def _steps(cohort: Cohort, mode: ExecutionMode) -> list[Any]:
    return ["training", len(cohort.runs), mode, _shared(cohort.shared)]


def _measuring(run: Run, settings: Measure) -> list[Any]:
    return ["measuring", settings.model_dump(mode="json", exclude={"probe", "points"}), _shared(run)]


def _shared(run: Run) -> dict[str, Any]:
    """The settings that identify a run, without those in which the runs of a cohort differ."""
    return {name: value for name, value in identity(run).items() if name not in PER_RUN}
