"""Lockstep training compared with single runs, and its fallbacks."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn
from torch._inductor import config as inductor_config
from torch._inductor import cpu_vec_isa
from torch.distributions import Distribution

from pyrovae import Pair, Run, Study, make_pair, run
from pyrovae.data import CohortData, Dataset
from pyrovae.guides import MeanField
from pyrovae.measures.declared import shipped
from pyrovae.measures.evaluate import Measurements
from pyrovae.programs.terms import Terms
from pyrovae.runner.measuring import measured_runs
from pyrovae.study import Cohort, Measure
from pyrovae.training.adam import Adam, step_sizes
from pyrovae.training.lockstep import COMPILER_OPTIONS, Batch, Lockstep
from pyrovae.training.streams import Streams

EVENT = torch.Size([1, 5, 5])
BETAS = (0.1, 1.0, 4.0)


@pytest.fixture
def pairs() -> list[Pair]:
    return [make_pair(Run(depth=2, width=12, latent_size=3, seed=seed), EVENT) for seed in (0, 1, 2)]


@pytest.fixture
def streams() -> Streams:
    return Streams([0, 1, 2], images=40, batch_size=8, noise_shapes={"z": torch.Size([3])})


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (40, *EVENT), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def lockstep_of(pairs: Sequence[Pair]) -> Lockstep:
    return Lockstep(pairs, {"beta": torch.tensor(BETAS)})


def evaluated(lockstep: Lockstep, streams: Streams, pixels: Tensor, **settings: int) -> list[Measurements]:
    cohort = Cohort(tuple(Run(seed=seed) for seed in streams.seeds))
    trained: Any = SimpleNamespace(
        lockstep=lockstep, streams=streams, data=CohortData(Dataset(pixels[:30], pixels[30:])), cohort=cohort
    )
    few = Measure(**settings, gap_images=4, gap_temperatures=2)
    return list(measured_runs(trained, few, shipped()))


def test_vmapped_terms_equal_those_of_each_pair(pairs: list[Pair], streams: Streams, images: Tensor) -> None:
    lockstep, noise, x = lockstep_of(pairs), streams.noise_for("test", 40), images / 255
    together = lockstep.terms(x, noise, [])
    for number, beta in enumerate(BETAS):
        for pair in (pairs[number], lockstep.pair(number)):
            alone = pair(x, {"z": noise["z"][number]}, beta=beta)
            for name in ("loss", "distortion", "rate"):
                ours, theirs = getattr(together, name)[number], getattr(alone, name)
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_vmapped_gradients_equal_sequential_ones(pairs: list[Pair], streams: Streams, images: Tensor) -> None:
    lockstep = lockstep_of(pairs)
    rows, keys = streams.index(0), streams.keys("draws", 0)
    batch = Batch(images, rows, rows, lockstep.values, streams.noise(0), step_sizes([0.0], 1), keys=keys)
    gradients, losses = {}, {}
    for mode in ("vmapped", "sequential"):
        adam = Adam.of(lockstep.params)
        losses[mode] = lockstep.stepper(mode, adam, batch)(batch)  # type: ignore[arg-type]
        gradients[mode] = adam.exp_avg
    torch.testing.assert_close(losses["vmapped"], losses["sequential"])
    for name, gradient in gradients["vmapped"].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(gradient, gradients["sequential"][name], rtol=1e-4, atol=1e-6)


def test_compilation_restores_validation(
    pairs: list[Pair], streams: Streams, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiled(graph: Any, **options: Any) -> Any:
        Distribution.set_default_validate_args(False)  # as torch.compile does when first called
        return graph

    monkeypatch.setattr(torch, "compile", compiled)
    lockstep, rows = lockstep_of(pairs), streams.index(0)
    batch = Batch(images, rows, rows, lockstep.values, streams.noise(0), step_sizes([0.0], 1))
    lockstep.stepper("compiled", Adam.of(lockstep.params), batch)(batch)
    assert Distribution._validate_args


class AVX2(cpu_vec_isa.VecAVX2):
    """Not that of torch, which remembers what it has tried."""


class AMX(cpu_vec_isa.VecAMX):
    pass


def test_only_instructions_that_a_compiler_may_not_know_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_vec_isa.VecISA, "check_build", lambda isa, code: False)
    with inductor_config.patch({"cpp.vec_isa_ok": COMPILER_OPTIONS["cpp.vec_isa_ok"]}):
        assert AVX2()
        assert not AMX()


def test_evaluation_does_not_change_weights(pairs: list[Pair], streams: Streams, images: Tensor) -> None:
    lockstep = lockstep_of(pairs)
    before = {name: value.clone() for name, value in lockstep.params.items()}
    evaluated(lockstep, streams, images, images=10, samples=2, outer=10)
    assert all(torch.equal(before[name], value) for name, value in lockstep.params.items())


def test_non_finite_encodings_are_reported_and_affect_no_other_run(
    pairs: list[Pair], streams: Streams, images: Tensor
) -> None:
    healthy = evaluated(lockstep_of(pairs), streams, images, images=8)
    with torch.no_grad():
        pairs[1].guide.encoder.output_bias[3:] = 200  # σ overflows
    ill = evaluated(lockstep_of(pairs), streams, images, images=8)
    assert [("not finite" in run.note) for run in ill] == [False, True, False]
    for name in ("mutual_information", "prior_gap", "marginal_rate"):
        assert not np.isfinite(ill[1].numbers["information"][name])
        for ours, theirs in zip(ill[::2], healthy[::2], strict=True):
            np.testing.assert_array_equal(ours.numbers["information"][name], theirs.numbers["information"][name])


def test_non_finite_distortion_is_not_averaged_away(
    pairs: list[Pair], streams: Streams, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    terms = Lockstep.terms

    def poisoned(self: Lockstep, *arguments: Any, **options: Any) -> Terms:
        found = terms(self, *arguments, **options)
        found.distortion[0, 0] = torch.nan
        return found

    monkeypatch.setattr(Lockstep, "terms", poisoned)
    for each in evaluated(lockstep_of(pairs), streams, images, images=20):
        assert np.isnan(each.numbers["rate_distortion"]["distortion"]).all()
        assert np.isfinite(each.numbers["rate_distortion"]["rate"]).all()


def test_numbers_of_a_run_do_not_depend_on_its_cohort(pairs: list[Pair], streams: Streams, images: Tensor) -> None:
    together = evaluated(lockstep_of(pairs), streams, images, images=20)
    for number, beta in enumerate(BETAS):
        alone = Lockstep([pairs[number]], {"beta": torch.tensor([beta])})
        (found,) = evaluated(alone, streams.single(number), images, images=20)
        for group, numbers in found.numbers.items():
            for name, value in numbers.items():
                np.testing.assert_array_equal(value, together[number].numbers[group][name], err_msg=name)


class GammaGuide(MeanField):
    """Samples a gamma distribution, which is not reparameterized from normal noise."""

    def posterior(self, x: Tensor) -> dist.Distribution:
        shape, rate = self.encoder(x).exp().chunk(2, dim=-1)
        return dist.Gamma(shape + 1, rate + 1).to_event(1)


class GammaPrior(nn.Module):
    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.event_shape = torch.Size([latent_size])

    def forward(self) -> dist.Distribution:
        return dist.Gamma(torch.ones(self.event_shape), 1.0).to_event(1)


class Branching(MeanField):
    """Depends on the values of its tensors, which vmap does not allow."""

    def posterior(self, x: Tensor) -> dist.Distribution:
        features = self.encoder(x)
        assert features.isfinite().all().item()
        return super().posterior(x)


def tiny() -> Study:
    sizes = {"depth": 1, "width": 8, "train_images": 64, "test_images": 64, "batch_size": 32}
    return Study.load("quick", **sizes, steps=3, seed=0)


@pytest.mark.parametrize(
    ("guide", "prior", "reason"),
    [
        (
            f"{__name__}:GammaGuide",
            f"{__name__}:GammaPrior",
            "cannot vmap: the guide is not reparameterized from normal noise; training the runs one by one",
        ),
        (f"{__name__}:Branching", "standard_normal", "execution mode vmapped failed, using sequential: RuntimeError"),
    ],
)
def test_programs_that_vmap_rejects_train_one_by_one(
    guide: str, prior: str, reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = run(tiny().replace(guide=guide, prior=prior), tmp_path / "study")
    assert sum(reason in line for line in capsys.readouterr().out.splitlines()) == 1
    assert set(results.tree["/runs/mode"].values.flatten()) == {"sequential"}
    assert (results.tree["/rate_distortion/rate"] > 0).all()


def test_training_without_a_compiler_is_eager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def no_compiler(graph: Any, **options: Any) -> Any:
        raise RuntimeError("no C++ compiler found\nand a long story")

    monkeypatch.setattr(torch, "compile", no_compiler)
    results = run(tiny(), tmp_path / "study", compile="always")
    assert (
        "execution mode compiled failed, using vmapped: RuntimeError: no C++ compiler found\n"
        in capsys.readouterr().out
    )
    assert set(results.tree["/runs/mode"].values.flatten()) == {"vmapped"}
