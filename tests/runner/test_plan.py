"""What a plan counts, estimates and refuses."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import STUDY

from pyrovae import InputError, Study, run
from pyrovae.build import make_cohort_data
from pyrovae.runner import estimate as estimating
from pyrovae.runner import speed
from pyrovae.runner.estimate import Estimate, estimate
from pyrovae.runner.plan import plan, progress
from pyrovae.runner.setup import start
from pyrovae.runner.speed import Speed, Speeds
from pyrovae.store.layout import RunFolder
from pyrovae.study import Measure, key_of
from pyrovae.system.execution import Execution
from pyrovae.training.trainer import Interrupted, Training

pytestmark = pytest.mark.usefixtures("trials")

CPU = Execution(device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study: two depths, one β and one seed, 60 steps; tests read it."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        run(STUDY, folder / "study", device="cpu", quiet=True)
    return folder / "study"


def counts(study: Study, folder: Path) -> list[tuple[int, int, dict[int, int], int]]:
    """Of each cohort: runs, finished runs, those left by their step, and repeated ones."""
    return [(each.runs, each.finished, each.starts, each.repeated) for each in plan(study, folder)]


def estimated(study: Study, folder: Path, execution: Execution = CPU) -> Estimate:
    return estimate(study, plan(study, folder), folder, execution)


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The runs of each trial: a step takes half a second for each, and measuring takes one for each thousand images."""
    sizes: list[int] = []

    def step_time(training: Training, seconds: float) -> float:
        sizes.append(len(training.lockstep))
        return len(training.lockstep) * 0.5

    monkeypatch.setattr(estimating, "step_time", step_time)
    monkeypatch.setattr(estimating, "measuring_time", lambda training, settings, images: images / 1000)
    return sizes


def content(folder: Path) -> dict[Path, bytes | None]:
    return {file: file.read_bytes() if file.is_file() else None for file in folder.rglob("*")}


def test_runs_without_folder_are_new(tmp_path: Path) -> None:
    assert counts(STUDY, tmp_path / "new") == [(1, 0, {0: 1}, 0)] * 2


def test_finished_runs_are_counted(finished: Path) -> None:
    assert counts(STUDY, finished) == [(1, 1, {}, 0)] * 2


def test_grown_study_counts_new_and_continued_runs(finished: Path) -> None:
    wider = STUDY.replace(beta=[0.1, 1], seed=[0, 1], depth=[1, 2, 3])
    assert counts(wider, finished) == [(4, 1, {0: 3}, 0)] * 2 + [(4, 0, {0: 4}, 0)]
    longer = wider.replace(steps=100)
    assert counts(longer, finished) == [(4, 0, {0: 3, 60: 1}, 0)] * 2 + [(4, 0, {0: 4}, 0)]


def test_runs_with_other_measure_settings_are_only_measured(finished: Path) -> None:
    assert counts(STUDY.replace(**{"measure.samples": 2}), finished) == [(1, 0, {60: 1}, 0)] * 2


def test_runs_without_a_record_are_only_measured(tmp_path: Path) -> None:
    study = STUDY.replace(depth=1, seed=[0, 1], steps=2)
    run(study, tmp_path, device="cpu", quiet=True)
    RunFolder.of(tmp_path, key_of(study.runs()[1])).record().unlink()
    assert counts(study, tmp_path) == [(2, 1, {2: 1}, 0)]


def test_interrupted_study_continues_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Training.save

    def stop_in_second_cohort(self: Training, file: Path) -> None:
        save(self, file)
        if self.step == 40 and self.cohort.shared.settings["depth"] == 2:
            raise Interrupted

    monkeypatch.setattr(Training, "save", stop_in_second_cohort)
    study = STUDY.replace(seed=[0, 1])
    with pytest.raises(Interrupted):
        run(study, tmp_path, device="cpu", quiet=True)
    assert counts(study, tmp_path) == [(2, 2, {}, 0), (2, 0, {40: 2}, 0)]
    assert counts(study.replace(seed=[0, 1, 2]), tmp_path) == [(3, 2, {0: 1}, 0), (3, 0, {0: 1, 40: 2}, 0)]


def test_runs_that_are_the_same_are_counted_once(tmp_path: Path) -> None:
    study = STUDY.replace(depth=1, prior=["standard_normal", "mixture"], components=[2, 3], beta=[0.1, 1])
    same = [(2, 0, {0: 2}, 0), (2, 0, {}, 2), (2, 0, {0: 2}, 0), (2, 0, {0: 2}, 0)]
    assert counts(study, tmp_path / "new") == same


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "1 run, finished"),
        ({"steps": 70}, "1 run, to continue from step 60"),
        ({"measure.samples": 2}, "1 run, to be measured"),
        ({"seed": [0, 1, 2]}, "3 runs, 1 finished, 2 new"),
        ({"seed": [1, 2]}, "2 runs, all new"),
        ({"seed": [0, 1], "steps": 70}, "2 runs, 1 new, 1 to continue from step 60"),
        ({"prior": ["standard_normal", "mixture"], "components": [3, 2]}, "1 run, finished"),
    ],
)
def test_progress_of_a_cohort_is_one_phrase(settings: dict[str, Any], expected: str, finished: Path) -> None:
    assert progress(plan(STUDY.replace(**settings), finished)[0]) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"steps": 50}, "steps: expected at least the 60 steps that the run at .* has done, got 50"),
        ({"width": 16}, "expected this study or a part of it, got other settings: width: 8 before, 16 now"),
    ],
)
def test_what_cannot_grow_is_refused_as_by_run(settings: dict[str, Any], expected: str, finished: Path) -> None:
    messages = []
    for use in (lambda study: plan(study, finished), lambda study: run(study, finished, quiet=True)):
        with pytest.raises(InputError, match=expected) as refused:
            use(STUDY.replace(**settings))
        messages.append(str(refused.value))
    assert messages[0] == messages[1]


def test_plan_and_trial_write_nothing_into_the_folder(finished: Path, tmp_path: Path) -> None:
    before = content(finished)
    grown = STUDY.replace(seed=[0, 1], steps=100)
    estimated(grown, finished)
    assert content(finished) == before
    estimated(STUDY, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_time_is_that_of_kept_speeds(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = {1: Speed(first=3, each=0.5), 2: Speed(first=1, each=0.25)}
    asked = []

    def of_training(self: Speeds, cohort: Any, mode: str) -> Speed:
        asked.append((len(cohort.runs), mode))
        return training[cohort.shared.settings["depth"]]

    monkeypatch.setattr(Speeds, "of_training", of_training)
    monkeypatch.setattr(Speeds, "of_measuring", lambda self, run, settings: Speed(each=2))
    found = estimated(STUDY.replace(seed=[0, 1, 2], steps=500), finished)
    # At either depth, one run continues from step 60, uncompiled as before, and two are new.
    assert asked == [(1, "vmapped"), (2, "compiled")] * 2
    assert sum(cost.compiling for cost in found.costs) == 2 * 3 + 2 * 1
    assert sum(cost.training for cost in found.costs) == (440 + 500) * (0.5 + 0.25)
    assert sum(cost.measuring for cost in found.costs) == 6 * 2
    assert found.seconds == 8 + 705 + 12 + found.drawing
    (line,) = found.lines()
    assert line.startswith("to do: about 12 min (from earlier runs on this machine), ")


def test_trial_stands_for_an_unknown_speed(tmp_path: Path, tried: list[int]) -> None:
    found = estimated(STUDY.replace(depth=1, seed=[0, 1]), tmp_path / "new")
    (cost,) = found.costs
    assert (cost.compiling, cost.training, cost.measuring) == (0, 60.0, 2 * 0.128)
    assert next(found.lines()).startswith("to do: about 66 s (from a trial), ")
    compiled = estimated(STUDY.replace(steps=500), tmp_path / "new").costs
    assert tuple(each.compiling for each in compiled) == estimating.COMPILING
    assert compiled[0].training == 500 * 0.5 * estimating.COMPILED


def test_parts_of_a_job_have_their_share(tmp_path: Path, tried: list[int]) -> None:
    study = STUDY.replace(depth=1, seed=[0, 1, 2, 3])
    (cost,) = estimated(study, tmp_path / "new").costs
    half, _ = cost.job.halves()
    whole, part = ([each.size for each in cost.parts(study, job)] for job in (cost.job, half))
    assert whole == [0, 120, 4 * 0.128]
    assert part == [0, 60, 2 * 0.128]


def test_speed_of_measuring_alone_is_tried(finished: Path, tried: list[int]) -> None:
    found = estimated(STUDY.replace(**{"measure.samples": 2}), finished)
    assert not tried
    assert [(cost.training, cost.measuring, cost.tried) for cost in found.costs] == [(0, 0.128, True)] * 2
    assert sum(cost.disk for cost in found.costs) == 0


@pytest.mark.parametrize(("seconds", "free"), [(1.5, 2**40), (0.01, 2**20)])
def test_trial_of_slow_or_large_cohorts_has_a_single_run(
    seconds: float, free: int, tmp_path: Path, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def step_time(training: Training, _: float) -> float:
        tried.append(len(training.lockstep))
        return seconds

    monkeypatch.setattr(estimating, "step_time", step_time)
    monkeypatch.setattr(estimating, "free_memory", lambda device: free)
    found = estimated(STUDY.replace(depth=1, seed=[0, 1, 2]), tmp_path / "new")
    assert tried == [1]
    assert found.costs[0].training == pytest.approx(60 * 3 * seconds)


def test_measuring_is_tried_with_as_many_runs_as_fit(
    tmp_path: Path, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measuring_time(training: Training, *_: object) -> float:
        tried.append(len(training.lockstep))
        return 1.0

    monkeypatch.setattr(estimating, "measuring_time", measuring_time)
    for free in (2**40, 2**20):
        monkeypatch.setattr(estimating, "free_memory", lambda device, free=free: free)
        estimated(STUDY.replace(depth=1, seed=0), tmp_path / "new")
    assert tried == [1, estimating.TIMED, 1, 1]


@pytest.mark.parametrize(("long", "expected"), [(0.0, 2), (1e9, 4)])
def test_slow_measuring_is_timed_with_two_runs(long: float, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []

    def measured_runs(training: Training, *_: object) -> Iterator[None]:
        for number, _ in enumerate(training.cohort.runs):
            yield measured.append(number)

    monkeypatch.setattr(speed, "LONG", long)
    monkeypatch.setattr(speed, "measured_runs", measured_runs)
    study = STUDY.replace(depth=1, beta=1, seed=[0, 1, 2, 3])
    (cohort,) = study.cohorts()
    training, _ = start(study.measure, cohort, make_cohort_data(cohort.runs))
    assert speed.measuring_time(training, study.measure, 1000) >= 0
    assert measured == [*range(expected)] * 2


@pytest.mark.parametrize("particles", [20, 5000])
def test_time_of_measuring_is_extrapolated_in_images_and_particles(
    particles: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]

    def seconds(images: int, particles: int) -> float:
        return 1 + 2e-3 * images + 3e-4 * particles + 4e-6 * images * particles

    def measured_runs(training: Training, settings: Measure, *_: object) -> Iterator[None]:
        assert settings.particles <= speed.PARTICLES
        for _ in training.cohort.runs:
            clock[0] += seconds(len(training.data.of(0).train), settings.particles)
            yield

    monkeypatch.setattr(speed, "measured_runs", measured_runs)
    monkeypatch.setattr(speed.time, "perf_counter", lambda: clock[0])
    study = STUDY.replace(depth=1, beta=1, seed=[0, 1], **{"measure.particles": particles})
    (cohort,) = study.cohorts()
    training, _ = start(study.measure, cohort, make_cohort_data(cohort.runs))
    assert speed.measuring_time(training, study.measure, 1000) == pytest.approx(seconds(1000, particles))


def test_run_keeps_the_speeds_that_plan_uses(tmp_path: Path, tried: list[int]) -> None:
    run(STUDY, tmp_path / "study", device="cpu", quiet=True)

    # Other β, seeds and steps, but as many runs at a time.
    def is_tried(**settings: Any) -> bool:
        return any(cost.tried for cost in estimated(STUDY.replace(**settings), tmp_path / "study").costs)

    assert not is_tried(beta=0.3, seed=7, steps=80)
    assert is_tried(seed=[1, 2])
    assert is_tried(seed=1, **{"measure.particles": 5})


def test_disk_of_new_runs_holds_their_files(finished: Path, tmp_path: Path, tried: list[int]) -> None:
    files = [file for file in finished.glob("runs/*/*") if file.suffix in (".nc", ".safetensors")]
    actual = sum(file.stat().st_size for file in files)
    disk = disk_of(STUDY, tmp_path / "new")
    assert 0.5 * actual < disk < 2 * actual
    assert disk_of(STUDY.replace(steps=61), finished) == 0
    assert disk_of(STUDY.replace(seed=[0, 1]), finished) == disk


def disk_of(study: Study, folder: Path) -> float:
    return sum(cost.disk for cost in estimated(study, folder).costs)


def test_tail_keeps_the_weights_twice(tmp_path: Path, tried: list[int]) -> None:
    def disk(**settings: Any) -> float:
        return disk_of(STUDY.replace(depth=1, **settings), tmp_path / "new")

    weights = disk(width=16) - disk(width=8)
    tails = {"learning_rate_schedule": "tail"}
    assert disk(width=16, **tails) - disk(width=8, **tails) == 2 * weights


def test_memory_is_that_of_the_largest_job(tmp_path: Path, tried: list[int]) -> None:
    one, three = (estimated(STUDY.replace(seed=list(range(n))), tmp_path / "new").memory for n in (1, 3))
    deepest = estimated(STUDY.replace(depth=2), tmp_path / "new").memory
    assert one == deepest
    images = (128 + 64) * 3 * 32 * 32
    assert three - images == 3 * (one - images)


def test_cohorts_that_do_not_fit_are_announced(
    tmp_path: Path, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimating, "free_memory", lambda device: 2**20)
    _, note = estimated(STUDY, tmp_path / "new").lines()
    assert note == "  1 MB of memory may be used, so that cohorts are split until they fit"


def test_workers_decide_the_time_of_a_cluster(tmp_path: Path) -> None:
    (line,) = estimated(STUDY, tmp_path / "new", Execution(scheduler="local")).lines()
    assert line.endswith("; the time depends on the workers")
