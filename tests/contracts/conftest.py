"""A fixture that the contracts of several kinds of components share."""

from collections.abc import Callable, Sequence

import pytest
import torch

from pyrovae import Pair
from pyrovae.data import as_input
from pyrovae.system.execution import ExecutionMode
from pyrovae.training.adam import DECAYS, Adam, State, step_sizes
from pyrovae.training.lockstep import WORTH_TRACING, Batch, Lockstep
from pyrovae.training.streams import Streams


@pytest.fixture
def assert_trains_in_lockstep() -> Callable[[Sequence[Pair], torch.Size], None]:
    """Asserts that two pairs get the same gradients vmapped, one by one, and as plain modules, all of them nonzero.

    Tracing changes no bit of them.
    """

    def check(pairs: Sequence[Pair], event_shape: torch.Size) -> None:
        images = torch.randint(
            0, 256, (20, *event_shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
        )
        for pair in pairs:
            pair.refresh(images)
        shapes = pairs[0].check(as_input(images), beta=0.5, gamma=0.25, index=torch.arange(20)).noise_shapes
        values = {"beta": torch.tensor([0.5, 2.0]), "gamma": torch.tensor([0.25, 1.0])}
        streams = Streams([0, 1], images=20, batch_size=10, noise_shapes=shapes)
        rows, noise, keys = streams.index(0), streams.noise(0), streams.keys("draws", 0)
        lockstep = Lockstep(pairs, values)
        batch = Batch(images, rows, rows, lockstep.values, noise, step_sizes([0.0], 1), keys=keys)

        def gradients(mode: ExecutionMode, steps: int = WORTH_TRACING) -> State:
            adam = Adam.of(lockstep.params)
            lockstep.stepper(mode, adam, batch, steps)(batch)
            return {name: mean / (1 - DECAYS[0]) for name, mean in adam.exp_avg.items()}

        vmapped, sequential, untraced = gradients("vmapped"), gradients("sequential"), gradients("vmapped", steps=1)
        assert vmapped.keys() == dict(pairs[0].named_parameters()).keys()
        for name, gradient in vmapped.items():
            assert gradient.flatten(1).abs().amax(1).gt(0).all(), f"the gradient of {name} is zero"
            torch.testing.assert_close(gradient, sequential[name], rtol=1e-4, atol=1e-4)
            assert torch.equal(gradient, untraced[name])
        for run, pair in enumerate(pairs):
            pair.zero_grad()
            weights = {name: value[run] for name, value in values.items()}
            own_noise = {site: draws[run] for site, draws in noise.items()}
            pair(as_input(images[rows[run]]), own_noise, index=rows[run], **weights).loss.mean().backward()
            for name, parameter in pair.named_parameters():
                torch.testing.assert_close(parameter.grad, vmapped[name][run], rtol=1e-4, atol=1e-4)

    return check
