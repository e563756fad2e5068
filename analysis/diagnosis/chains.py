"""How long NUTS runs; without torch, so that the command line can show the defaults."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ChainSettings:
    """How many chains NUTS runs for each image, and how long they are.

    Attributes:
        chains: independent chains.
        draws: draws per chain after warm-up.
        warmup: adaptation steps per chain, which are discarded.
    """

    chains: int = 4
    draws: int = 200
    warmup: int = 200

    @property
    def total_draws(self) -> int:
        """Draws of all chains, without the warm-up."""
        return self.chains * self.draws

    @property
    def trajectories(self) -> int:
        """Trajectories of all chains, including the warm-up."""
        return self.chains * (self.draws + self.warmup)
