"""What several kinds of part owe alike."""

from collections.abc import Callable, Sequence

import pytest
import torch

from pyrovae import Pair
from pyrovae.data import as_input
from pyrovae.training.adam import DECAYS, Adam, State, step_sizes
from pyrovae.training.lockstep import Batch, ExecutionMode, Lockstep
from pyrovae.training.streams import Streams


@pytest.fixture
def assert_trains_in_lockstep() -> Callable[[Sequence[Pair], torch.Size], None]:
    """Holds that two pairs get the same gradients together as alone, and that a gradient reaches every parameter."""

    def check(pairs: Sequence[Pair], event: torch.Size) -> None:
        images = torch.randint(0, 256, (20, *event), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        for pair in pairs:
            pair.refresh(images)
        index = torch.arange(20)
        shapes = pairs[0].check(as_input(images), beta=0.5, gamma=0.25, index=index).noise_shapes
        values = {"beta": torch.tensor([0.5, 2.0]), "gamma": torch.tensor([0.25, 1.0])}
        lockstep = Lockstep(pairs, values)
        streams = Streams([0, 1], images=20, batch_size=10, noise_shapes=shapes)
        keys = streams.keys("draws", 0)
        batch = Batch(images, streams.index(0), lockstep.values, streams.noise(0), step_sizes(0, 1), keys=keys)

        def gradients(mode: ExecutionMode) -> State:
            adam = Adam.of(lockstep.params)
            lockstep.stepper(mode, adam, batch)(batch)
            return {name: mean / (1 - DECAYS[0]) for name, mean in adam.exp_avg.items()}

        lifted, single = gradients("vmapped"), gradients("sequential")
        assert lifted.keys() == dict(pairs[0].named_parameters()).keys()
        for parameter, gradient in lifted.items():
            assert gradient.flatten(1).abs().amax(1).gt(0).all(), f"no gradient reaches {parameter}"
            torch.testing.assert_close(gradient, single[parameter], rtol=1e-4, atol=1e-4)
        for run, pair in enumerate(pairs):
            x, rows = as_input(images[streams.index(0)[run]]), streams.index(0)[run]
            noise = {site: draws[run] for site, draws in streams.noise(0).items()}
            pair.zero_grad()
            weights = {name: value[run] for name, value in values.items()}
            pair(x, noise, index=rows, **weights).loss.mean().backward()
            for parameter, value in pair.named_parameters():
                torch.testing.assert_close(value.grad, lifted[parameter][run], rtol=1e-4, atol=1e-4)

    return check
