"""Effect handlers that let a Pyro program run inside ``torch.func`` transforms."""

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.programs.distributions import reparameterize


class LocalParams(Messenger):
    """Answers every ``pyro.param`` with the module's own tensor, so that Pyro's store stays empty."""

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        msg["value"] = msg["args"][1]
        msg["done"] = True


class Noise(Messenger):
    """Draws latent sites from noise that is passed in, as in z = μ + σ ε, instead of from a generator.

    It belongs around the guide alone: around the model it would overwrite the replayed z.

    Args:
        noise: standard normal draws by site name, each in the shape that `noise_shape` gives.
            A site without noise is drawn as Pyro draws it.
    """

    def __init__(self, noise: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.noise = noise

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if msg["done"] or msg["is_observed"] or msg["name"] not in self.noise:
            return
        msg["value"] = reparameterize(msg["fn"], self.noise[msg["name"]])
        msg["done"] = True


class SubstituteLatent(Messenger):
    """Gives the first latent site of a model a value, whatever its name.

    Args:
        z: the value, in the shape of the site.
    """

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z: Tensor | None = z

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if self.z is None or msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        msg["value"], self.z = self.z, None
        msg["done"] = True
