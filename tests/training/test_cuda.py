"""Agreement of a GPU with the CPU; `test_device` tests what needs no GPU."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pyrovae import Study, open_results, run
from pyrovae.build import make_cohort_data
from pyrovae.estimators import Annealing, annealed_log_likelihood, log_likelihood
from pyrovae.estimators.likelihood import ImportanceWeighted
from pyrovae.runner.cohort import measure
from pyrovae.runner.setup import start
from pyrovae.store.checkpoint import Checkpoint
from pyrovae.system.progress import StudyProgress
from pyrovae.training import streams
from pyrovae.training.trainer import Interrupted, Training

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CPU, GPU = torch.device("cpu"), torch.device("cuda")
STUDY = Study(
    name="contract", beta=[0.1, 0.5, 1], seed=[0, 1], depth=2, width=64, latent_size=4, train_images=512,
    test_images=256, batch_size=64, steps=600, checkpoint_every=100,
    measure={"images": 256, "outer": 256, "particles": 16, "reconstructions": 16, "probe": 64, "points": 5},
)  # fmt: skip
PARTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "conv": {"network": "conv_small", "pixels": "dynamic"},
    "full rank": {"guide": "full_rank", "prior": "vamp", "components": 20},
    "flow": {"guide": "flow", "prior": "flow"},
    "bank": {"prior": "aggregate_subsampled", "components": 50},
    "constant": {"likelihood": "gaussian"},
    "gap": {"model": "gap", "gamma": 0.5, "prior": "mixture", "components": 20},
}


def training(study: Study, place: torch.device) -> Training:
    """The training of a study's only cohort, on a device."""
    (cohort,) = study.cohorts()
    return start(study.measure, cohort, make_cohort_data(cohort.runs).to(place))[0]


@pytest.fixture
def drawn_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws noise and thresholds on the CPU for either device."""

    def drawn(self: streams.Streams, stream: str, block: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        generators = [streams.generator(seed, stream, block) for seed in self._distinct]
        return torch.stack([torch.randn(shape, generator=each) for each in generators]).to(device)

    def thresholds(shape: torch.Size, generator: torch.Generator) -> Tensor:
        seed = generator.initial_seed()
        return made(shape, torch.Generator().manual_seed(seed)).to(generator.device)

    made = streams.thresholds
    monkeypatch.setattr(streams.Streams, "_draw", drawn)
    monkeypatch.setattr(streams, "thresholds", thresholds)


def stacked(found: Training) -> Tensor:
    """All weights."""
    return torch.cat([each.flatten().cpu() for each in found.lockstep.params.values()])


@pytest.mark.usefixtures("drawn_on_the_cpu")
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_first_steps_equal_those_of_the_cpu(parts: dict[str, Any]) -> None:
    """In norm: rounding may switch a unit on or off, after which Adam moves its weights by whole steps."""
    trained: dict[str, Tensor] = {}
    for place in (CPU, GPU):
        found = training(STUDY.replace(**parts), place)
        before = stacked(found)
        step = found.stepper("always" if place == GPU else "never", StudyProgress(quiet=True))
        for _ in range(50):
            step()
        trained[place.type] = stacked(found) - before
        assert found.lockstep.mode == ("cuda_graph" if place == GPU else "vmapped")
    assert (trained["cuda"] - trained["cpu"]).norm() < 0.01 * trained["cpu"].norm()


@pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning")
@pytest.mark.parametrize("compile", ["always", "never"])
@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_steps_never_synchronise(parts: dict[str, Any], compile: Any) -> None:
    found = training(STUDY.replace(**parts, refresh=1000), GPU)
    step = found.stepper(compile, StudyProgress(quiet=True))
    step()  # before which encodings are refreshed, which synchronises
    assert found.lockstep.mode == ("cuda_graph" if compile == "always" else "vmapped")
    try:
        torch.cuda.set_sync_debug_mode("error")
        for _ in range(100):  # over the end of an epoch, and of a block of noise
            step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_results_agree_with_the_cpu_within_their_errors(tmp_path: Path) -> None:
    """With different noise, and in every precision."""
    ours = run(STUDY, tmp_path / "cpu", device="cpu", quiet=True, compile="never")
    for precision in ("float32", "tf32", "bfloat16"):
        study = STUDY.replace(precision=precision)
        theirs = run(study, tmp_path / precision, device="cuda", quiet=True, compile="always")
        assert set(theirs.tree["runs/mode"].values.flatten()) == {"cuda_graph"}
        assert all(name.startswith("cuda (") for name in theirs.tree["runs/device"].values.flatten())
        for name in ("distortion", "rate"):
            one, other = (each.tree["rate_distortion"].to_dataset() for each in (ours, theirs))
            error = np.hypot(one[f"{name}_se"], other[f"{name}_se"])
            assert (abs(one[name] - other[name]) < 4.27 * error).all()


@pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)
def test_measures_of_a_checkpoint_agree_on_both_devices(parts: dict[str, Any], tmp_path: Path) -> None:
    """Measures are in float32 in whatever precision training was; equal draws give equal numbers."""
    study = STUDY.replace(**parts, steps=50, precision="tf32")
    (cohort,) = study.cohorts()
    found = training(study, GPU)
    found.run(every=100, file=tmp_path / "checkpoint", compile="never", task=StudyProgress(quiet=True).start("", 50))
    theirs = list(measure(study, cohort, found, StudyProgress(quiet=True)))
    back = training(study, CPU)
    back.restore(Checkpoint.load(tmp_path / "checkpoint"))
    for number, ours in enumerate(measure(study, cohort, back, StudyProgress(quiet=True))):
        for group in ("rate_distortion", "information"):
            for name, value in ours.numbers[group].items():
                other = theirs[number].numbers[group][name]
                np.testing.assert_allclose(other, value, rtol=1e-3, atol=1e-3, err_msg=name)


class Stopping(StudyProgress):
    """Requests a stop at a step."""

    def __init__(self, at: int) -> None:
        super().__init__(quiet=True)
        self.at = at

    def stop_requested(self) -> bool:
        return any(task.done == self.at for task in self._tasks)


def test_training_resumes_on_either_device(tmp_path: Path) -> None:
    """The noise is that of an uninterrupted training; the environments name both devices."""
    whole = training(STUDY, GPU)
    whole.run(every=300, file=tmp_path / "whole", compile="always", task=Stopping(-1).start("", 600))
    with pytest.raises(Interrupted):
        training(STUDY, GPU).run(every=300, file=tmp_path / "cut", compile="always", task=Stopping(130).start("", 600))
    for place, since in ((GPU, [0]), (CPU, [0, 130])):
        file = tmp_path / place.type
        file.write_bytes((tmp_path / "cut").read_bytes())
        again = training(STUDY, place)
        again.restore(Checkpoint.load(file))
        again.run(every=300, file=file, compile="always", task=Stopping(-1).start("", 600))
        assert [each.since for each in again.environments] == since
        if place == GPU:
            assert (stacked(again) - stacked(whole)).norm() < 0.01 * stacked(whole).norm()


def test_cohorts_that_run_out_of_memory_are_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also during training, if the estimate was too low."""
    study = STUDY.replace(width=2048, depth=1, steps=20, beta=[0.1, 0.3, 0.5, 1], seed=0)  # of 51 MB of weights a run
    monkeypatch.setattr("pyrovae.system.memory.check_memory", lambda *arguments, **settings: None)
    torch.cuda.empty_cache()
    _, total = torch.cuda.mem_get_info()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 2**30) / total)
    try:  # four runs would take 12 copies of them twice over while they are compiled
        run(study, tmp_path / "study", device="cuda", quiet=True, compile="always")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    tree = open_results(tmp_path / "study").tree
    assert len(set(tree["runs/cohort"].values.flatten())) > 1
    assert set(tree["runs/status"].values.flatten()) == {"done"}


def test_bounds_of_log_p_agree_within_their_errors() -> None:
    """By importance weighting and by annealing; each device has its own draws."""
    found: dict[str, ImportanceWeighted] = {}
    annealed: dict[str, Tensor] = {}
    for place in (CPU, GPU):
        trained = training(STUDY.replace(seed=0, beta=1.0), place)
        pair, x = trained.lockstep.pair(0), trained.data.images.test[:32] / 255
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found[place.type] = log_likelihood(pair.log_weights, x, 512)
            _, prior = pair.latent(x[:1])
            log_p = lambda x, z, pair=pair: pair.likelihood(x, z).log_prob(x)  # noqa: E731
            bounds = annealed_log_likelihood(prior, log_p, x, Annealing(temperatures=50, chains=8))
            annealed[place.type] = torch.stack([bounds.bound.cpu(), bounds.se.cpu()])
    difference = found["cpu"].estimate.value - found["cuda"].estimate.value
    assert abs(difference) < 4.27 * np.hypot(found["cpu"].estimate.se, found["cuda"].estimate.se)
    (ours, our_se), (theirs, their_se) = annealed["cpu"], annealed["cuda"]
    assert (abs(ours - theirs).mean() < 4.27 * torch.hypot(our_se, their_se).mean()).item()
