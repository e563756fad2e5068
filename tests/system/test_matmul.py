"""The library that multiplies matrices: exact, chosen by its speed, restored afterwards, and recorded."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from pyrovae import InputError, Study, fit, run
from pyrovae.measures.evaluate import Measurements
from pyrovae.runner import cohort, estimate
from pyrovae.system import matmul
from pyrovae.system.execution import Matmul
from pyrovae.system.matmul import library_in_use, multiplied_by
from pyrovae.training.trainer import Metrics

STUDY = Study(
    name="multiplied", beta=[0.1, 1], seed=0, depth=1, width=8, train_images=64, test_images=64, steps=20,
    batch_size=16, checkpoint_every=5,
    measure={"images": 32, "outer": 32, "particles": 2, "reconstructions": 2, "probe": 8, "points": 3},
)  # fmt: skip


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """A machine whose oneDNN takes so many seconds where BLAS takes one, and rounds or not."""
    one = SimpleNamespace(seconds=1.0, rounds=False, clock=0.0, products=0)
    multiply = torch.bmm

    def bmm(left: Tensor, right: Tensor) -> Tensor:
        by_onednn = library_in_use() == "onednn" and left.dtype == torch.float32
        one.products += 1
        one.clock += one.seconds if by_onednn else 1.0
        if by_onednn and one.rounds:
            left = left.bfloat16().float()
        return multiply(left, right)

    with multiplied_by("blas"):  # the real one might round
        monkeypatch.setattr(torch, "bmm", bmm)
        monkeypatch.setattr(matmul, "time", SimpleNamespace(perf_counter=lambda: one.clock))
        yield one


def exact_libraries() -> list[Matmul]:
    """What can be chosen on the machine of the test."""
    return [choice for choice in get_args(Matmul) if choice != "onednn" or matmul.onednn_is_exact()]


@pytest.fixture
def rounding_allowed() -> Iterator[None]:
    """By a user's script."""
    backends: Any = torch.backends
    before, backends.fp32_precision = backends.fp32_precision, "bf16"
    yield
    backends.fp32_precision = before


@pytest.mark.usefixtures("rounding_allowed")
def test_products_are_exact() -> None:
    shapes = [
        ((8, 128, 768), (8, 768, 512)),
        ((18, 64, 10), (18, 10, 128)),
        ((3, 5, 7), (3, 7, 1)),
        ((2048, 768), (768, 128)),
        ((1, 300), (300, 1)),
        ((4096, 20), (20, 1024)),
    ]
    draws = torch.Generator().manual_seed(0)
    for choice in exact_libraries():
        with multiplied_by(choice):
            assert choice in ("auto", library_in_use())
            for left, right in shapes:
                x, y = torch.randn(left, generator=draws), torch.randn(right, generator=draws)
                exact = x.double() @ y.double()
                for product in (x @ y, x.mT.contiguous().mT @ y, x @ y.mT.contiguous().mT):
                    error = (product - exact).abs().max() / exact.abs().max()
                    assert error < 1e-5, (choice, left, right)


@pytest.mark.parametrize("before", ["none", "ieee", "bf16"])
def test_what_was_set_before_is_restored(before: str) -> None:
    settings, usual = matmul._settings(), matmul._settings().fp32_precision
    settings.fp32_precision = before
    try:
        for choice in exact_libraries():
            with multiplied_by(choice):
                assert choice in ("auto", library_in_use())
            assert settings.fp32_precision == before
        with pytest.raises(KeyError), multiplied_by("blas"):
            raise KeyError
        assert settings.fp32_precision == before
    finally:
        settings.fp32_precision = usual


@pytest.mark.parametrize(
    ("seconds", "rounds", "faster"),
    [(0.5, False, "onednn"), (0.9, False, "blas"), (2, False, "blas"), (0.1, True, "blas")],
)
def test_auto_takes_the_faster_library_that_does_not_round(
    machine: SimpleNamespace, seconds: float, rounds: bool, faster: Matmul
) -> None:
    machine.seconds, machine.rounds = seconds, rounds
    with multiplied_by("auto"):
        assert library_in_use() == faster
    measured, machine.seconds = machine.products, 1 / seconds
    with multiplied_by("auto"):  # as it was measured
        assert library_in_use() == faster
    assert machine.products == measured


def test_defaults_of_a_script_and_a_damaged_file_change_nothing(machine: SimpleNamespace, tmp_path: Path) -> None:
    machine.seconds = 0.5
    with multiplied_by("auto"):
        (file,) = tmp_path.glob("cache/pyrovae/matmul/*.json")
    file.write_text("[]")
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    try:
        with multiplied_by("auto"):
            assert library_in_use() == "onednn"
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)


def test_a_library_that_rounds_is_refused(machine: SimpleNamespace, tmp_path: Path) -> None:
    machine.rounds = True
    with pytest.raises(InputError, match="matmul: expected auto or blas, got onednn, which is missing here, or would"):
        run(STUDY, tmp_path / "study", matmul="onednn", compile="never")
    assert not list((tmp_path / "study").glob("runs/*"))


def test_unknown_choice_is_one_line(tmp_path: Path) -> None:
    options: dict[str, Any]
    for options in ({"matmul": "mkl"}, {"compile": "yes"}):
        ((name, value),) = options.items()
        with pytest.raises(InputError, match=f"^{name}: expected auto, .*, got '{value}'$"):
            run(STUDY, tmp_path / "study", **options)
    with pytest.raises(InputError, match=r"^compile: expected auto, always, never, got 'yes'$"):
        fit(torch.rand(8, 1, 4, 4), compile="yes")  # type: ignore[arg-type]
    assert not (tmp_path / "study").exists()


def test_all_of_a_study_uses_the_library_that_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The provenance says where a study went on with another one."""
    used: list[tuple[str, str]] = []
    measured_runs, start = cohort.measured_runs, estimate.start

    def stop(metrics: Metrics) -> None:
        used.append(("train", library_in_use()))
        if metrics.step == 10:
            raise KeyboardInterrupt

    def planned(*arguments: Any) -> Any:
        used.append(("plan", library_in_use()))
        return start(*arguments)

    def measured(*arguments: Any) -> Iterator[Measurements]:
        used.append(("measure", library_in_use()))
        return measured_runs(*arguments)

    monkeypatch.setattr(matmul, "onednn_is_exact", lambda: True)  # here, it may round
    monkeypatch.setattr(estimate, "start", planned)
    monkeypatch.setattr(cohort, "measured_runs", measured)
    with pytest.raises(KeyboardInterrupt):
        run(STUDY, tmp_path / "study", matmul="blas", compile="never", callbacks=[stop])
    results = run(STUDY, tmp_path / "study", matmul="onednn", compile="never")
    assert set(used) == {("plan", "blas"), ("train", "blas"), ("plan", "onednn"), ("measure", "onednn")}
    assert "from step 5 on with other matmul blas → onednn: last digits may differ" in capsys.readouterr().out
    assert set(results.tree["runs"]["matmul"].values.flat) == {"blas, from step 5 on onednn"}
