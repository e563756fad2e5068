"""Random streams of runs: what a run draws depends only on its seed and the step.

A stream is divided into blocks, and each block has its own generator, keyed by (seed, stream, block). A resumed run
therefore continues with the numbers of an uninterrupted one, and runs with the same seed share theirs across β.

Initial weights, batch order and the draws behind measures are the same on every device. The noise of training steps and
the thresholds of pixels come from the generator of the device: with the same key, a GPU draws other numbers than a CPU.
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
        batch_size: images in a batch; an incomplete batch at the end of an epoch is dropped.
        noise_shapes: shape of the noise of one image, by latent site; None where noise cannot be injected.
        device: the device of the runs.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        images: int,
        batch_size: int,
        noise_shapes: Mapping[str, torch.Size | None],
        device: torch.device = CPU,
    ) -> None:
        self.seeds = list(seeds)
        self.images = images
        self.batch_size = batch_size
        self.vmappable = None not in noise_shapes.values()
        self._shapes = {site: shape for site, shape in noise_shapes.items() if shape is not None}
        self._distinct = sorted(set(seeds))
        self._device = device
        self._of_run = torch.tensor([self._distinct.index(seed) for seed in seeds])
        self._of_run_on_device = self._of_run.to(device)
        # Neighbouring steps share a block.
        self._epoch = lru_cache(maxsize=1)(self._draw_epoch)
        self._block = lru_cache(maxsize=1)(self._draw_block)

    def single(self, run: int) -> "Streams":
        """The streams of one run."""
        shapes: dict[str, torch.Size | None] = dict(self._shapes)
        return Streams([self.seeds[run]], self.images, self.batch_size, shapes, self._device)

    def index(self, step: int) -> Tensor:
        """Training images in the batch of each run, ``[runs, batch]``."""
        epoch, batch = divmod(step, self.images // self.batch_size)
        start = batch * self.batch_size
        return self._epoch(epoch)[self._of_run_on_device, start : start + self.batch_size]

    def noise(self, step: int) -> dict[str, Tensor]:
        """Standard normal draws for the batch of each run by site, ``[runs, batch, *shape]``."""
        block, row = divmod(step, BLOCK)
        return {site: draws[self._of_run_on_device, row] for site, draws in self._block(block).items()}

    def thresholds(self, step: int, event_shape: torch.Size) -> Tensor:
        """Uniform thresholds for the pixels in the batch of each run, 0 to 254, ``[runs, batch, *event_shape]``."""
        shape = torch.Size([self.batch_size, *event_shape])
        draws = [thresholds(shape, generator(seed, "pixels", step, self._device)) for seed in self._distinct]
        return torch.stack(draws)[self._of_run_on_device]

    def noise_for(self, purpose: str, images: int, block: int = 0) -> dict[str, Tensor]:
        """Draws for purposes other than training, by site, ``[runs, images, *shape]``, on the CPU."""
        return {
            site: self._draw(f"{purpose} {site}", block, (images, *shape), CPU)[self._of_run]
            for site, shape in self._shapes.items()
        }

    def keys(self, purpose: str, block: int) -> list[int]:
        """One seed per run, for draws from torch's generator."""
        return [derive_seed(seed, purpose, block) for seed in self.seeds]

    def _draw_epoch(self, epoch: int) -> Tensor:
        orders = [torch.randperm(self.images, generator=generator(seed, "batches", epoch)) for seed in self._distinct]
        return to_device(torch.stack(orders), self._device)

    def _draw_block(self, block: int) -> dict[str, Tensor]:
        return {
            site: self._draw(f"noise {site}", block, (BLOCK, self.batch_size, *shape), self._device)
            for site, shape in self._shapes.items()
        }

    def _draw(self, stream: str, block: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Draws for each distinct seed, ``[seeds, *shape]``."""
        generators = (generator(seed, stream, block, device) for seed in self._distinct)
        return torch.stack([torch.randn(shape, generator=each, device=device) for each in generators])
