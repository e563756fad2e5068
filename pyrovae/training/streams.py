"""Random numbers by key: what a run draws depends on its seed and the step alone.

A stream is cut into blocks, and each block has a generator of its own, keyed by (seed, stream, block). So a
resumed run goes on with the numbers it would have had, and runs with one seed share theirs across β.

Initial weights, the order of batches and the draws behind what is measured are the same on every device. The noise of
the steps and the thresholds of pixels are drawn where they are used, by the generator of the device: from one key a GPU
draws other numbers than a CPU.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from pyrovae.data.pixels import thresholds
from pyrovae.programs.noise import CPU, derive_seed, generator
from pyrovae.system.device import to_device

#: Steps in a block of noise.
BLOCK = 64


class Streams:
    """Batch order and noise of the runs of a cohort.

    Args:
        seeds: the seed of each run.
        images: number of training images.
        batch_size: images in a batch; what is left of an epoch when no whole batch fits is dropped.
        noise_shapes: shape of the noise of one image, by latent site; None where noise cannot be passed in.
        place: the device of the runs, on which what a step takes is handed out without waiting for it.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        images: int,
        batch_size: int,
        noise_shapes: Mapping[str, torch.Size | None],
        place: torch.device = CPU,
    ) -> None:
        self.seeds = list(seeds)
        self.images = images
        self.batch_size = batch_size
        self.vmappable = None not in noise_shapes.values()
        self._shapes = {site: shape for site, shape in noise_shapes.items() if shape is not None}
        self._distinct = sorted(set(seeds))
        self._place = place
        self._of_run = torch.tensor([self._distinct.index(seed) for seed in seeds])
        self._of_run_there = self._of_run.to(place)
        # Neighbouring steps share a block, so the last one is kept.
        self._epoch = lru_cache(maxsize=1)(self._draw_epoch)
        self._block = lru_cache(maxsize=1)(self._draw_block)

    def index(self, step: int) -> Tensor:
        """Training images in the batch of each run, ``[runs, batch]``."""
        epoch, batch = divmod(step, self.images // self.batch_size)
        start = batch * self.batch_size
        return self._epoch(epoch)[self._of_run_there, start : start + self.batch_size]

    def noise(self, step: int) -> dict[str, Tensor]:
        """Standard normal draws for the batch of each run by site, ``[runs, batch, *shape]``."""
        block, row = divmod(step, BLOCK)
        return {site: draws[self._of_run_there, row] for site, draws in self._block(block).items()}

    def thresholds(self, step: int, event_shape: torch.Size) -> Tensor:
        """Uniform thresholds for the pixels in the batch of each run, 0 to 254, ``[runs, batch, *event_shape]``."""
        shape = torch.Size([self.batch_size, *event_shape])
        draws = [thresholds(shape, generator(seed, "pixels", step, self._place)) for seed in self._distinct]
        return torch.stack(draws)[self._of_run_there]

    def noise_for(self, purpose: str, images: int, block: int = 0) -> dict[str, Tensor]:
        """Draws for other ends than training, by site, ``[runs, images, *shape]``: the same always, on the CPU."""
        return {
            site: self._draw(f"{purpose} {site}", block, (images, *shape), CPU)[self._of_run]
            for site, shape in self._shapes.items()
        }

    def keys(self, purpose: str, block: int) -> list[int]:
        """One key a run, for programs that draw from torch's generator themselves."""
        return [derive_seed(seed, purpose, block) for seed in self.seeds]

    def _draw_epoch(self, epoch: int) -> Tensor:
        orders = [torch.randperm(self.images, generator=generator(seed, "batches", epoch)) for seed in self._distinct]
        return to_device(torch.stack(orders), self._place)

    def _draw_block(self, block: int) -> dict[str, Tensor]:
        return {
            site: self._draw(f"noise {site}", block, (BLOCK, self.batch_size, *shape), self._place)
            for site, shape in self._shapes.items()
        }

    def _draw(self, stream: str, block: int, shape: tuple[int, ...], place: torch.device) -> Tensor:
        """Draws for each seed, ``[seeds, *shape]``."""
        generators = (generator(seed, stream, block, place) for seed in self._distinct)
        return torch.stack([torch.randn(shape, generator=each, device=place) for each in generators])
