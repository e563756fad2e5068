"""Grey and binarised pixels, and the training step that uses them."""

import pytest
import torch
from torch import Tensor

from pyrovae import InputError, Run, make_pair
from pyrovae.data import CohortData, Dataset, as_input, pixels
from pyrovae.study import Cohort, Measure
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.streams import Streams
from pyrovae.training.trainer import Training

EVENT = torch.Size([1, 4, 4])
#: Failure rate 2e-5, two-sided.
TWO_SIDED = 4.27


def constant(value: int, images: int) -> Tensor:
    return torch.full((images, *EVENT), value, dtype=torch.uint8)


@pytest.mark.parametrize("value", [0, 1, 64, 200, 254, 255])
def test_pixel_is_lit_with_its_grey_value_as_probability(value: int) -> None:
    lit = as_input(pixels.static(Dataset(constant(value, 5000), constant(value, 10))).train)
    assert set(lit.unique().tolist()) <= {0.0, 1.0}
    p, n = value / 255, lit.numel()
    assert abs(lit.mean().item() - p) <= TWO_SIDED * (p * (1 - p) / n) ** 0.5
    streams = Streams([0], images=5000, batch_size=5000, noise_shapes={})
    fresh = as_input(constant(value, 5000), streams.thresholds(0, EVENT)[0])
    assert abs(fresh.mean().item() - p) <= TWO_SIDED * (p * (1 - p) / n) ** 0.5


def test_static_binarisation_is_deterministic_and_independent_between_images() -> None:
    data = Dataset(constant(128, 50), constant(128, 50))
    once, again = pixels.static(data), pixels.static(data)
    assert torch.equal(once.train, again.train)
    assert torch.equal(once.test, again.test)
    assert len(once.train.unique(dim=0)) == 50
    assert not torch.equal(once.train, once.test)


def test_static_binarisation_of_an_image_depends_on_nothing_but_its_row() -> None:
    rows = torch.tensor([3, 1500, 7, 4000])
    grey = constant(128, 5000)
    whole = pixels.static(Dataset(grey, grey[:10], rows=(torch.arange(5000), torch.arange(5000, 5010))))
    some = pixels.static(Dataset(grey[rows], grey[:5], rows=(rows, torch.arange(5000, 5005))))
    assert torch.equal(some.train, whole.train[rows])
    assert torch.equal(some.test, whole.test[:5])


def test_dynamic_binarisation_keeps_grey_and_one_static_binarisation() -> None:
    data = Dataset(constant(128, 50), constant(64, 50))
    dynamic = pixels.dynamic(data)
    assert dynamic.grey is data.train
    assert torch.equal(dynamic.train, pixels.static(data).train)
    torch.testing.assert_close(dynamic.mean(), torch.full(EVENT, 128 / 255))


def test_binarising_floats_raises() -> None:
    with pytest.raises(InputError, match="pixels: expected images with 256 grey values"):
        pixels.static(Dataset(torch.rand(3, *EVENT), torch.rand(3, *EVENT)))


def test_thresholds_depend_on_step_and_seed_only() -> None:
    streams = Streams([0, 0, 1], images=10, batch_size=4, noise_shapes={})
    first, second = streams.thresholds(0, EVENT), streams.thresholds(1, EVENT)
    assert (first.shape, first.dtype) == ((3, 4, *EVENT), torch.uint8)
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert not torch.equal(first, second)
    assert torch.equal(first, Streams([0, 0, 1], images=10, batch_size=4, noise_shapes={}).thresholds(0, EVENT))


def test_beta_schedule_ends_at_beta() -> None:
    assert {Run(steps=50).beta_share(step) for step in range(50)} == {1.0}
    for cycles in (1, 3, 4):
        for steps in (50, 96, 97):
            run = Run(steps=steps, warmup=0.7, cycles=cycles)
            shares = [run.beta_share(step) for step in range(steps)]
            falls = [step for step in range(1, steps) if shares[step] < shares[step - 1]]
            assert len(falls) == cycles - 1
            assert min(shares) > 0
            assert shares[-1] == 1.0
    rise = [Run(steps=10, warmup=1).beta_share(step) for step in range(10)]
    assert rise == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])


@pytest.mark.parametrize("mode", ["vmapped", "sequential"])
def test_step_is_adam_on_fresh_binarisation_at_scheduled_beta(mode: str) -> None:
    """Training in lockstep matches three steps of torch's Adam for each run separately."""
    grey = torch.randint(256, (40, *EVENT), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = pixels.dynamic(Dataset(grey[:30], grey[30:]))
    base = Run(depth=1, width=8, latent_size=2, batch_size=8, steps=3, warmup=1.0)
    runs = tuple(base.model_copy(update={"beta": beta, "seed": seed}) for beta in (0.5, 4.0) for seed in (0, 1))
    streams = Streams([run.seed for run in runs], len(data.train), 8, {"z": torch.Size([2])})
    lockstep = Lockstep([make_pair(run, EVENT) for run in runs], {"beta": torch.tensor([run.beta for run in runs])})
    training = Training(lockstep, streams, CohortData(data), Cohort(runs), Measure(), "")
    stepped = lockstep.stepper(mode, training.adam, training._batch(0))  # type: ignore[arg-type]
    for step in range(3):
        stepped(training._batch(step))
    for number, run in enumerate(runs):
        pair = make_pair(run, EVENT)
        optimizer = torch.optim.Adam(pair.parameters(), lr=run.learning_rate)
        for step in range(3):
            x = grey[:30][streams.index(step)[number]]
            lit = (streams.thresholds(step, EVENT)[number] < x).float()
            optimizer.zero_grad()
            pair(lit, {"z": streams.noise(step)["z"][number]}, beta=run.beta * (step + 1) / 3).loss.mean().backward()
            optimizer.step()
        for (name, ours), theirs in zip(lockstep.pair(number).named_parameters(), pair.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)
