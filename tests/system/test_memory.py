"""Cohorts that do not fit into memory: cut before they begin, or on their way, with the same results."""

import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from pyrovae import InputError, Results, Study, open_results, run
from pyrovae.analysis.report import tables
from pyrovae.build import make_data
from pyrovae.runner.cohort import bytes_of_a_run, start
from pyrovae.runner.experiment import reevaluate
from pyrovae.system import atomic, memory, tensor_file
from pyrovae.training.adam import Adam
from pyrovae.training.lockstep import Batch, Lockstep

pytestmark = pytest.mark.usefixtures("few_figures")

STUDY = Study.of(
    name="large", beta=[0.1, 0.5, 1], seed=[0, 1], depth=1, width=8, latent_size=2, train_images=64, test_images=32,
    batch_size=16, steps=50, checkpoint_every=20,
    measure={"images": 32, "outer": 32, "particles": 4, "reconstructions": 4, "probe": 16, "points": 5},
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """All runs in one cohort."""
    return run(STUDY, tmp_path_factory.mktemp("whole") / "study", quiet=True)


def _agrees(results: Results, whole: Results, parts: list[str]) -> None:
    """The same runs in other cohorts."""
    assert [cohort.name for cohort in results.cohorts()] == parts
    assert sorted(file.name for file in results.folder.glob("checkpoints/*")) == [
        f"cohort-{part}.safetensors" for part in parts
    ]
    assert set(results.tree["runs/cohort"].values.flatten()) == set(parts)
    for each in STUDY.runs():
        pairs = [study.pair(beta=each.beta, seed=each.seed) for study in (results, whole)]
        for one, other in zip(*(pair.parameters() for pair in pairs), strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=0)
    for name in ("distortion", "rate"):
        error = whole.tree[f"rate_distortion/{name}_se"]
        for group in ("rate_distortion", "curves"):
            difference = abs(results.tree[f"{group}/{name}"] - whole.tree[f"{group}/{name}"])
            assert (difference < 0.1 * error).all()


def _needed(runs: int) -> int:
    """Memory that lockstep of some runs is reckoned to take."""
    (cohort,) = STUDY.cohorts()
    data = make_data(cohort.shared)
    training, _ = start(STUDY, cohort, data)
    return runs * bytes_of_a_run(training.lockstep.pair(0), cohort, data)


def test_cohort_that_does_not_fit_is_cut_before_it_begins(
    whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six runs are cut into three and three; the first of these, when there is less yet, into one and two."""
    enough = [_needed(4), _needed(4), _needed(4), _needed(2)]  # a run alone, all, three, three

    def free(place: object = None) -> float:
        return (enough.pop(0) if place is not None and len(enough) > 1 else enough[0]) / 0.8 + 1

    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_memory", free)
        results = run(STUDY, tmp_path / "study")
    told = capsys.readouterr().out.replace("\n", " ")
    assert "large: goes on in two halves, because 6 runs in lockstep would take 0.0 GB" in told
    _agrees(open_results(results.folder), whole, ["000-0", "000-1-0", "000-1-1"])
    (table,) = tables.provenance(results.tree)
    assert list(table.columns[0].cells) == ["000-0", "000-1-0", "000-1-1"]
    before = {file: file.stat().st_mtime_ns for file in results.folder.rglob("*.safetensors")}
    run(STUDY, tmp_path / "study", quiet=True)
    assert before == {file: file.stat().st_mtime_ns for file in results.folder.rglob("*.safetensors")}
    results, again = reevaluate(tmp_path / "study", samples=2)
    assert set(again["runs/cohort"].values.flatten()) == {"000-0", "000-1-0", "000-1-1"}


def _short(step: int, most: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has memory run out at a step where more runs are in lockstep than some."""
    stepper = Lockstep.stepper

    def failing(self: Lockstep, mode: Any, adam: Adam, example: Batch) -> Callable[[Batch], Any]:
        calls = [0]
        taken = stepper(self, mode, adam, example)

        def short(batch: Batch) -> Any:
            calls[0] += 1
            if calls[0] > step and len(self) > most:
                raise error
            return taken(batch)

        return short

    monkeypatch.setattr(Lockstep, "stepper", failing)


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), MemoryError(),
     RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_cohort_that_runs_out_of_memory_goes_on_in_halves_from_its_checkpoint(
    error: Exception, whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resumed = []
    resume = Lockstep.__init__

    def counted(self: Lockstep, pairs: Any, *rest: Any) -> None:
        resumed.append(len(pairs))
        resume(self, pairs, *rest)

    monkeypatch.setattr(Lockstep, "__init__", counted)
    _short(30, 3, error, monkeypatch)
    results = run(STUDY, tmp_path / "study", quiet=True)
    assert resumed == [1, 6, 3, 3]  # the first to see whether it can be done at all
    _agrees(results, whole, ["000-0", "000-1"])


def test_one_run_that_does_not_fit_is_one_line_and_other_errors_are_none_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        _short(5, 0, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GB\nmore"), patch)
        told = "large, part 000-0-0: expected one run to fit into memory, but CUDA out of memory. Tried to allocate 2"
        with pytest.raises(InputError, match=f"{told} GB$"):
            run(STUDY, tmp_path / "study", quiet=True)
    _short(5, 0, RuntimeError("a mistake"), monkeypatch)
    with pytest.raises(RuntimeError, match="a mistake"):
        run(STUDY, tmp_path / "other", quiet=True)


def test_cut_that_was_killed_leaves_the_whole_or_the_halves(
    whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole.folder, tmp_path / "study")
    results, write = open_results(tmp_path / "study"), atomic.write
    (cohort,) = results.cohorts()
    written: list[Path] = []

    def killed(path: Path, content: bytes) -> None:
        if written:
            raise KeyboardInterrupt
        write(path, content)
        written.append(path)

    with monkeypatch.context() as patch:
        patch.setattr(atomic, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            results.cut(cohort)
    assert results.cohorts() == [cohort]
    assert (
        [half.name for half in results.cut(cohort)] == [half.name for half in results.cohorts()] == ["000-0", "000-1"]
    )
    for each in STUDY.runs():
        pairs = [study.pair(beta=each.beta, seed=each.seed) for study in (results, whole)]
        for one, other in zip(*(pair.parameters() for pair in pairs), strict=True):
            assert torch.equal(one, other)


def test_checkpoint_of_other_runs_is_not_cut(whole: Results, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path / "study")
    results = open_results(tmp_path / "study")
    (cohort,) = results.cohorts()
    file = results.checkpoint_file(cohort)
    groups, facts = tensor_file.load(file)
    for other in (facts | {"runs": facts["runs"][:2]}, facts | {"step": -1}, []):
        tensor_file.save(file, groups, other)  # type: ignore[arg-type]
        with pytest.raises(InputError, match="expected a checkpoint"):
            results.cut(cohort)
        assert file.exists()


def test_free_memory_is_what_the_narrowest_control_group_leaves(tmp_path: Path) -> None:
    """Files that were read into memory are no use of it; the outermost group has no limit."""

    def group(place: Path, most: str, used: int) -> None:
        (place / "memory.max").write_text(f"{most}\n")
        (place / "memory.current").write_text(f"{used}\n")
        (place / "memory.stat").write_text("anon 70\ninactive_file 30\n")

    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    group(inner, "max", 50)
    group(inner.parent, "1000", 400)
    assert list(memory._left_by_groups(inner)) == [630]
    group(inner, "500", 400)
    assert list(memory._left_by_groups(inner)) == [130, 630]


def test_free_memory_is_what_the_limit_of_the_process_leaves() -> None:
    before = memory.free_memory()
    used, limit = psutil.Process().memory_info().vms, resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limit[1]))
    try:
        assert 0 < memory.free_memory() <= 2**30 < before
        with pytest.raises(InputError, match=r"would take 2\.0 GB, and [01]\.[0-9] GB of memory are free"):
            memory.check_memory(2**31, "this")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_allocator_of_torch_tells_that_memory_is_out() -> None:
    with pytest.raises(RuntimeError) as told:
        torch.empty(10**15)
    assert memory.is_out_of_memory(told.value)
    assert not memory.is_out_of_memory(RuntimeError("a mistake"))


def test_memory_that_was_out_while_a_graph_was_captured_shows_behind_what_its_end_says() -> None:
    @contextmanager
    def capture() -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("the capture was invalidated") from None

    def out_of_memory(error: Exception) -> bool:
        with pytest.raises(RuntimeError, match="invalidated") as told, capture():
            raise error
        return memory.is_out_of_memory(told.value)

    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("a mistake"))


KEEPER = """
import resource, psutil, torch
from pyrovae.system import memory

def faults(size=2**24, rounds=10):  # by default of a size of which the C library keeps nothing by itself
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

held = psutil.Process().memory_info
memory._LIBRARY.mallopt(memory._MMAP_THRESHOLD, 2**17)  # above which nothing is kept
print(faults(2**22, 40), end=" ")
with memory.freed_memory_kept():
    pass
faults(2**22)
print(faults(2**22, 40), end=" ")
outside = faults()
with memory.freed_memory_kept():
    faults()
    print(outside, faults(), held().rss, end=" ")
print(held().rss)
"""


@pytest.mark.skipif(not hasattr(memory._LIBRARY, "mallopt"), reason="this C library has nothing to set")
def test_freed_memory_is_kept_inside_the_block_and_given_back_after_it() -> None:
    """In a process of its own: what others have freed before it may be kept too."""
    told = subprocess.run([sys.executable, "-c", KEEPER], stdout=subprocess.PIPE, text=True, check=True).stdout
    given_back, small, outside, inside, kept, left = map(int, told.split())
    assert inside < outside / 5
    assert left < kept - 2**25
    assert small < given_back / 5, "what the C library keeps by itself it keeps behind a block, too"


def test_with_another_c_library_the_block_is_only_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LIBRARY", None)
    with memory.freed_memory_kept():
        memory.give_back_memory()
    with pytest.raises(KeyError), memory.freed_memory_kept():
        raise KeyError
