"""Cohorts that do not fit into memory are split before or during training, with the same results."""

import gc
import resource
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import xarray as xr

from pyrovae import InputError, Results, Study, open_results, run
from pyrovae.analysis.report.provenance import provenance
from pyrovae.build import make_cohort_data
from pyrovae.runner.estimate import Estimate
from pyrovae.runner.remeasure import reevaluate
from pyrovae.runner.setup import bytes_of_a_run, start
from pyrovae.system import memory
from pyrovae.training.lockstep import Batch, Lockstep

STUDY = Study(
    name="large", beta=[0.1, 0.5, 1], seed=[0, 1], depth=1, width=8, latent_size=2, train_images=64, test_images=32,
    batch_size=16, steps=50, checkpoint_every=20,
    measure={"images": 32, "outer": 32, "particles": 4, "reconstructions": 4, "probe": 16, "points": 5},
)  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The study with all runs in one cohort."""
    return run(STUDY, tmp_path_factory.mktemp("whole") / "study", quiet=True)


def _sizes(tree: xr.DataTree) -> list[int]:
    """Numbers of the runs that were worked on together."""
    return sorted(Counter(tree["runs/cohort"].values.flatten()).values())


def _assert_close(results: Results, whole: Results, sizes: list[int]) -> None:
    """Asserts that a study trained in cohorts of these sizes has the same results, and no checkpoints of cohorts."""
    assert _sizes(results.tree) == sizes
    assert not list(results.folder.glob("training/*.safetensors"))
    _assert_close_weights(results, whole, atol=1e-4)
    for name in ("distortion", "rate"):
        error = whole.tree[f"rate_distortion/{name}_se"]
        for group in ("rate_distortion", "curves"):
            difference = abs(results.tree[f"{group}/{name}"] - whole.tree[f"{group}/{name}"])
            assert (difference < 0.1 * error).all()


def _assert_close_weights(results: Results, whole: Results, atol: float) -> None:
    for cell in STUDY.runs():
        ours, theirs = (study.pair(beta=cell.beta, seed=cell.seed).state_dict() for study in (results, whole))
        torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def _memory_of(runs: int) -> int:
    """Estimated memory for training some runs in lockstep."""
    (cohort,) = STUDY.cohorts()
    data = make_cohort_data(cohort.runs)
    training, _ = start(STUDY.measure, cohort, data)
    return runs * bytes_of_a_run(training.lockstep.pair(0), cohort, data)


def test_counting_the_bytes_of_a_run_frees_its_pair() -> None:
    cohort = STUDY.cohorts()[0]
    data = make_cohort_data(cohort.runs)
    training, _ = start(STUDY.measure, cohort, data)
    pair = training.lockstep.pair(0)
    weights = [weakref.ref(each) for each in pair.parameters()]
    assert bytes_of_a_run(pair, cohort, data) > 0
    del pair
    gc.collect()
    assert [each() for each in weights] == [None] * len(weights)


def test_cohort_too_large_for_memory_is_split_before_training(
    whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Six runs are split into three and three; then, with less free memory, the second three into one and two."""
    enough = [_memory_of(runs) for runs in (4, 4, 4, 2)]  # when one run, all, three and three are to begin

    def free(device: object = None) -> float:
        return (enough.pop(0) if device is not None and len(enough) > 1 else enough[0]) / 0.8 + 1

    with monkeypatch.context() as patch:
        patch.setattr(memory, "free_memory", free)
        patch.setattr("pyrovae.runner.run.estimate", lambda *_: Estimate((), 0.0, None))  # it asks for memory, too
        results = run(STUDY, tmp_path / "study")
    output = capsys.readouterr().out.replace("\n", " ")
    assert "in two halves, because 6 runs in lockstep would take 0.0 GB" in output
    _assert_close(open_results(results.folder), whole, [1, 2, 3])
    (table,) = provenance(results.tree)
    assert len(list(table.columns[0].cells)) == 3
    before = {file: file.stat().st_mtime_ns for file in results.folder.rglob("*.safetensors")}
    run(STUDY, tmp_path / "study", quiet=True)
    assert before == {file: file.stat().st_mtime_ns for file in results.folder.rglob("*.safetensors")}
    _, again = reevaluate(tmp_path / "study", samples=2)
    assert sum(_sizes(again.tree)) == 6


def _fail_after(step: int, max_runs: int, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises an error after a step where more than `max_runs` train in lockstep."""
    stepper = Lockstep.stepper

    def failing_stepper(self: Lockstep, *arguments: Any) -> Callable[[Batch], Any]:
        calls = [0]
        take_step = stepper(self, *arguments)

        def failing_step(batch: Batch) -> Any:
            calls[0] += 1
            if calls[0] > step and len(self) > max_runs:
                raise error
            return take_step(batch)

        return failing_step

    monkeypatch.setattr(Lockstep, "stepper", failing_stepper)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
        pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), marks=pytest.mark.long),
        pytest.param(MemoryError(), marks=pytest.mark.long),
    ],
    ids=lambda error: type(error).__name__,
)
def test_cohort_out_of_memory_continues_in_halves_from_its_checkpoint(
    error: Exception, whole: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    init = Lockstep.__init__

    def recorded(self: Lockstep, pairs: Any, *rest: Any) -> None:
        sizes.append(len(pairs))
        init(self, pairs, *rest)

    monkeypatch.setattr(Lockstep, "__init__", recorded)
    _fail_after(30, 3, error, monkeypatch)
    results = run(STUDY, tmp_path / "study", quiet=True)
    assert [size for size in sizes if size > 1] == [6, 3, 3]
    _assert_close(results, whole, [3, 3])


def test_single_run_too_large_for_memory_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_after(5, 0, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GB\nmore"), monkeypatch)
    expected = "large, 1 of 6 runs: expected one run to fit into memory, but CUDA out of memory. Tried to allocate 2"
    with pytest.raises(InputError, match=f"{expected} GB$"):
        run(STUDY, tmp_path / "study", quiet=True)


def test_other_errors_do_not_split_a_cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _fail_after(5, 0, RuntimeError("a mistake"), monkeypatch)
    with pytest.raises(RuntimeError, match="a mistake"):
        run(STUDY, tmp_path / "study", quiet=True)


def test_free_memory_respects_every_control_group(tmp_path: Path) -> None:
    """Cached files count as free; a group may have no limit."""

    def group(folder: Path, limit: str, used: int) -> None:
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 70\ninactive_file 30\n")

    inner = tmp_path / "job" / "step"
    inner.mkdir(parents=True)
    group(inner, "max", 50)
    group(inner.parent, "1000", 400)
    assert list(memory._left_by_groups(inner)) == [630]
    group(inner, "500", 400)
    assert list(memory._left_by_groups(inner)) == [130, 630]


def test_free_memory_respects_the_limit_of_the_process() -> None:
    before = memory.free_memory()
    used, limit = psutil.Process().memory_info().vms, resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, limit[1]))
    try:
        assert 0 < memory.free_memory() <= 2**30 < before
        with pytest.raises(InputError, match=r"would take 2\.0 GB, and [01]\.[0-9] GB of memory are free"):
            memory.check_memory(2**31, "this")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)


def test_torch_allocation_failure_is_recognised() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.empty(10**15)
    assert memory.is_out_of_memory(raised.value)
    assert not memory.is_out_of_memory(RuntimeError("a mistake"))


def test_allocation_failure_behind_another_error_is_recognised() -> None:
    """As when a CUDA graph is captured: leaving the capture raises an error too."""

    @contextmanager
    def capture() -> Iterator[None]:
        try:
            yield
        finally:
            raise RuntimeError("the capture was invalidated") from None

    def out_of_memory(error: Exception) -> bool:
        with pytest.raises(RuntimeError, match="invalidated") as raised, capture():
            raise error
        return memory.is_out_of_memory(raised.value)

    assert out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert not out_of_memory(RuntimeError("a mistake"))


PAGE_FAULTS = """
import resource, psutil, torch
from pyrovae.system import memory

def faults(size=2**24, rounds=10):  # by default too large for the C library to keep
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(rounds):
        torch.ones(size)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

memory_info = psutil.Process().memory_info
memory._LIBRARY.mallopt(memory._MMAP_THRESHOLD, 2**17)  # larger blocks are never kept
print(faults(2**22, 40), end=" ")
with memory.freed_memory_kept():
    pass
faults(2**22)
print(faults(2**22, 40), end=" ")
outside = faults()
with memory.freed_memory_kept():
    faults()
    print(outside, faults(), memory_info().rss, end=" ")
print(memory_info().rss)
"""


@pytest.mark.skipif(not hasattr(memory._LIBRARY, "mallopt"), reason="this C library has no mallopt")
def test_freed_memory_is_kept_inside_the_block_and_returned_after() -> None:
    """In a new process, where no other test has allocated memory."""
    output = subprocess.run([sys.executable, "-c", PAGE_FAULTS], stdout=subprocess.PIPE, text=True, check=True).stdout
    returned, small, outside, inside, kept, left = map(int, output.split())
    assert inside < outside / 5
    assert left < kept - 2**25
    assert small < returned / 5, "after a block, the C library keeps small blocks as by default"


def test_without_mallopt_the_block_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_LIBRARY", None)
    with memory.freed_memory_kept():
        memory.give_back_memory()
    with pytest.raises(KeyError), memory.freed_memory_kept():
        raise KeyError
