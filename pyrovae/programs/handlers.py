"""Effect handlers that make a Pyro program compatible with ``torch.func`` transforms."""

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyrovae.programs.distributions import reparameterize


class LocalParams(Messenger):
    """Resolves every ``pyro.param`` to the module's own tensor, so that the param store stays empty."""

    def _pyro_param(self, msg: dict[str, Any]) -> None:
        msg["value"] = msg["args"][1]
        msg["done"] = True


class Noise(Messenger):
    """Samples latent sites from injected noise, z = μ + σ ε, instead of from a generator.

    Wrap only the guide in it: around the model, it would overwrite the replayed z.

    Args:
        noise: standard normal draws by site name, each in the shape that `noise_shape` gives.
            Pyro samples the sites without noise.
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
    """Sets the value of the first latent site of a model, whatever its name.

    Args:
        z: the value, with the shape of the site.
    """

    def __init__(self, z: Tensor) -> None:
        super().__init__()
        self.z: Tensor | None = z

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        if self.z is None or msg["done"] or msg["is_observed"] or site_is_subsample(msg):
            return
        msg["value"], self.z = self.z, None
        msg["done"] = True
