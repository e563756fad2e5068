"""What training on a GPU requires, as far as a fake device can show it."""

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from fake_device import CPU, DEVICE, FakeDevice
from torch import Tensor

from pyrovae import InputError, Study, run
from pyrovae.build import make_cohort_data
from pyrovae.estimators import likelihood, marginal
from pyrovae.measures import encodings
from pyrovae.models.priors import bank
from pyrovae.programs.noise import derive_seed
from pyrovae.runner.cohort import measure, run_job
from pyrovae.runner.jobs import Job
from pyrovae.runner.setup import start
from pyrovae.store.checkpoint import Checkpoint
from pyrovae.system import memory
from pyrovae.system.device import device_name
from pyrovae.system.progress import StudyProgress
from pyrovae.system.provenance import history
from pyrovae.training import lockstep, streams
from pyrovae.training.lockstep import Batch, capture
from pyrovae.training.modes import candidate_modes
from pyrovae.training.trainer import Training

STUDY = Study(
    name="device", beta=[0.1, 1], seed=[0, 1], depth=1, width=8, latent_size=2, train_images=64, test_images=32,
    batch_size=16, steps=8,
    measure={"images": 32, "outer": 32, "particles": 4, "reconstructions": 4, "probe": 16, "points": 4,
             "likelihood_images": 4},
)  # fmt: skip
PARTS: dict[str, dict[str, Any]] = {
    "plain": {"measure.temperatures": 2},
    "dynamic": {"pixels": "dynamic", "network": "conv_small"},
    "full rank": {"guide": "full_rank", "prior": "vamp", "components": 5},
    "flow": {"guide": "flow", "prior": "flow"},
    "two levels": {"model": "hierarchical", "guide": "hierarchical"},
    "bank": {"prior": "aggregate_subsampled", "components": 5, "refresh": 3},
    "gap": {"model": "gap", "gamma": 0.5, "refresh": 3, "prior": "mixture", "components": 5},
    "logistic": {"likelihood": "discretised_logistic"},
    "gaussian": {"likelihood": "gaussian_shared", "prior": "diagonal"},
}


class Generator(torch.Generator):
    """The CPU's generator, on the fake device."""

    device = DEVICE


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """The fake device, with much memory, on which programs are called instead of traced."""

    def generator(seed: int, stream: str, block: int = 0, device: torch.device = CPU) -> torch.Generator:
        made = Generator() if device == DEVICE else torch.Generator()
        return made.manual_seed(derive_seed(seed, stream, block))

    monkeypatch.setattr(streams, "generator", generator)
    monkeypatch.setattr(lockstep, "traced", lambda function: lambda *example: function)
    chunks = (marginal.CHUNK_ELEMENTS, likelihood.CHUNK_ELEMENTS, encodings.ENCODED)
    for sizes in (*chunks, bank.CHUNK_IMAGES, bank.CHUNK_PAIRS):
        monkeypatch.setitem(sizes, DEVICE.type, sizes["cpu"])
    monkeypatch.setattr(memory, "free_memory", lambda device=None: 2**40)
    return FakeDevice()


def training(study: Study, place: torch.device) -> Training:
    """The training of a study's only cohort, on a device."""
    (cohort,) = study.cohorts()
    return start(study.measure, cohort, make_cohort_data(cohort.runs).to(place))[0]


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_steps_equal_those_of_the_cpu_and_never_synchronise(parts: dict[str, Any], device: FakeDevice) -> None:
    study, trained = STUDY.replace(**parts), []
    for place in (CPU, DEVICE):
        with device:
            found = training(study, place)
            step = found.stepper("never", StudyProgress(quiet=True))
            assert found.lockstep.mode == "vmapped"
            step()  # before which a prior refreshes its encodings
            device.waits.clear()
            losses = step() + step()
            assert not device.waits
            trained.append({name: each.cpu() for name, each in (found.lockstep.params | {"": losses}).items()})
    assert all(each.isfinite().all() for each in trained[0].values())
    for name, ours in trained[0].items():
        torch.testing.assert_close(trained[1][name], ours, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "parts",
    ["plain", "bank", *(pytest.param(each, marks=pytest.mark.long) for each in ("dynamic", "full rank", "logistic"))],
)
def test_results_equal_those_of_the_cpu(parts: str, device: FakeDevice, tmp_path: Path) -> None:
    """Training, measures, and a resume on the CPU."""
    study, found = STUDY.replace(**PARTS[parts]), []
    (cohort,) = study.cohorts()
    for place in (CPU, DEVICE):
        with device:
            trained = training(study, place)
            trained.run(
                every=4, file=tmp_path / place.type, compile="never", task=StudyProgress(quiet=True).start("", 8)
            )
            found.append(list(measure(study, cohort, trained, StudyProgress(quiet=True))))
    for ours, theirs in zip(*found, strict=True):
        assert theirs.note == ours.note
        for group, numbers in ours.numbers.items():
            for name, number in numbers.items():
                np.testing.assert_allclose(theirs.numbers[group][name], number, rtol=1e-3, atol=1e-4, err_msg=name)
    back = training(study, CPU)
    back.restore(Checkpoint.load(tmp_path / DEVICE.type))
    assert (back.step, history(back.environments)["device"]) == (8, DEVICE.type)
    assert back.curves["loss"][-1].isfinite().all()


def test_captured_step_copies_each_batch_to_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses that it returns survive the next step; images are not copied."""
    recorded: list[Callable[[], Tensor]] = []
    # A replay repeats what was done during capture.
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: recorded[-1]()))
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: nullcontext())
    weights, losses = torch.zeros(2), torch.zeros(2)

    def step(batch: Batch) -> Tensor:
        assert batch.images is images

        def again() -> Tensor:
            weights.add_(batch.images[batch.rows].sum(1) + batch.noise["z"] + batch.values["beta"] + batch.step_sizes)
            return losses.copy_(weights)

        recorded.append(again)
        return losses

    def batch(number: int) -> Batch:
        one, rows = torch.full((2,), float(number)), torch.tensor([[0, number], [1, number]])
        return Batch(images, rows, rows, {"beta": one}, {"z": 10 * one}, 100 * one)

    images = torch.arange(5.0)
    replayed, alive = capture(step, batch(4)), weakref.ref(step)
    del step
    gc.collect()
    assert alive() is not None, "the graph reads constants of the step"
    images += 1  # in place, like everything other than the batch
    found = [replayed(batch(number)) for number in range(3)]
    ours = torch.zeros(2)
    for number in range(3):
        ours = ours + torch.tensor([1.0 + 1 + number, 2.0 + 1 + number]) + 111 * number
        torch.testing.assert_close(found[number], ours)


def test_training_state_keeps_its_memory_addresses(tmp_path: Path) -> None:
    """Steps, learning curves and a resume update weights, moments and encodings in place."""
    study, file = STUDY.replace(**PARTS["bank"]), tmp_path / "checkpoint"
    trained = training(study, CPU)
    state = [trained.lockstep.params, trained.lockstep.buffers, trained.adam.exp_avg, trained.adam.exp_avg_sq]
    before = [{name: each.data_ptr() for name, each in part.items()} for part in state]
    bank = trained.lockstep.buffers["model.prior.bank"].clone()
    trained.run(every=4, file=file, compile="never", task=StudyProgress(quiet=True).start("", 8))
    trained.restore(Checkpoint.load(file))
    now = [trained.lockstep.params, trained.lockstep.buffers, trained.adam.exp_avg, trained.adam.exp_avg_sq]
    assert [{name: each.data_ptr() for name, each in part.items()} for part in now] == before
    assert not trained.lockstep.buffers["model.prior.bank"].equal(bank)


@pytest.mark.parametrize(
    ("device", "compile", "previous", "modes"),
    [
        ("cuda", "always", None, ["cuda_graph", "compiled", "vmapped", "sequential"]),
        ("cpu", "always", None, ["compiled", "vmapped", "sequential"]),
        ("cuda", "never", None, ["vmapped", "sequential"]),
        ("cuda", "never", "cuda_graph", ["cuda_graph", "compiled", "vmapped", "sequential"]),
        ("cpu", "always", "cuda_graph", ["compiled", "vmapped", "sequential"]),
        ("cuda", "always", "vmapped", ["vmapped", "sequential"]),
        ("cuda", "always", "compiled", ["cuda_graph", "compiled", "vmapped", "sequential"]),
    ],
)
def test_resumed_cohort_keeps_its_execution_mode(device: str, compile: Any, previous: Any, modes: list[str]) -> None:
    assert list(candidate_modes(torch.device(device), 8, compile, previous)) == modes


def test_provenance_names_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda place: "NVIDIA H200")
    assert [device_name(torch.device(name)) for name in ("cuda", "cpu")] == ["cuda (NVIDIA H200)", "cpu"]


def test_tf32_needs_a_gpu_for_training_only(tmp_path: Path) -> None:
    study = STUDY.replace(precision=["float32", "tf32"])
    with pytest.raises(InputError, match="precision: tf32 is for GPUs, got the device cpu; take float32"):
        run(study, tmp_path / "study", device="cpu", quiet=True)
    assert not (tmp_path / "study").exists()
    (_, cohort) = study.cohorts()
    with pytest.raises(InputError, match="precision: tf32"):  # as on a worker without a GPU
        run_job(study, Job(cohort), tmp_path, CPU, "never", StudyProgress(quiet=True))
    trained, _ = start(study.measure, cohort, make_cohort_data(cohort.runs))
    for found in measure(study, cohort, trained, StudyProgress(quiet=True)):
        assert np.isfinite(found.numbers["rate_distortion"]["rate"]).all()
