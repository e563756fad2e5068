"""The loss of one pair by pyrovae, by plain Pyro and by pythae, on the same weights and images: needs the extra bench.

python tests/benchmarks/agreement.py
"""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO
from pythae.models import BetaVAE, BetaVAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from rich.console import Console
from rich.table import Table
from torch import Tensor

import pyrovae
from pyrovae.data import as_input

BETA, LATENTS, DRAWS, IMAGES = 0.5, 10, 400, 64


def trained() -> tuple[pyrovae.Pair, Tensor]:
    """A pair with one layer, and the test images."""
    run = pyrovae.Run(data="tetrominoes", split="checkerboard", side=16, train_images=2048, test_images=IMAGES)
    data = pyrovae.make_data(run)
    pair = pyrovae.fit(data.train.numpy(), beta=BETA, latent_size=LATENTS, depth=1, width=64, steps=500, quiet=True)
    return pair, as_input(data.test)


def plain_pyro(pair: pyrovae.Pair) -> tuple[Callable[[Tensor], None], Callable[[Tensor], None]]:
    """A model and a guide as Pyro's tutorial has them, with the networks of a pair."""

    def model(x: Tensor) -> None:
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=BETA):
                z = pyro.sample("z", dist.Normal(0, 1).expand([LATENTS]).to_event(1))
            logits = pair.model.decoder(z).view_as(x)
            pyro.sample("x", dist.Bernoulli(logits=logits, validate_args=False).to_event(3), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("images", len(x)), poutine.scale(scale=BETA):
            loc, log_scale = pair.guide.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return model, guide


def pythae_model(pair: pyrovae.Pair, shape: torch.Size) -> BetaVAE:
    """A model of pythae with the networks of a pair."""

    class Encoder(BaseEncoder):
        def forward(self, x: Tensor) -> ModelOutput:
            loc, log_scale = pair.guide.encoder(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=2 * log_scale)

    class Decoder(BaseDecoder):
        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=pair.model.decoder(z).sigmoid())

    config = BetaVAEConfig(input_dim=tuple(shape), latent_dim=LATENTS, reconstruction_loss="bce", beta=BETA)
    return BetaVAE(config, encoder=Encoder(), decoder=Decoder())


@torch.no_grad()
def main() -> None:
    """Prints means over draws of z with their standard errors, in nats per image."""
    torch.manual_seed(0)
    pair, x = trained()
    other = pythae_model(pair, x.shape[1:])
    programs = plain_pyro(pair)
    rows: dict[str, list[list[float]]] = {"pyrovae": [], "plain Pyro": [], "pythae": []}
    for _ in range(DRAWS):
        terms = pair.terms(x)
        rows["pyrovae"].append([float(each.mean()) for each in (terms.distortion, terms.rate, terms.loss)])
        rows["plain Pyro"].append([torch.nan, torch.nan, TraceMeanField_ELBO().loss(*programs, x) / IMAGES])
        found = other({"data": x})
        rows["pythae"].append([float(each) for each in (found.recon_loss, found.reg_loss, found.loss)])
    table = Table("", "D", "R", f"D + {BETA} R")
    for name, values in rows.items():
        draws = torch.tensor(values, dtype=torch.float64)
        cells = zip(draws.mean(0).tolist(), (draws.std(0) / DRAWS**0.5).tolist(), strict=True)
        table.add_row(name, *(f"{mean:.3f} ± {error:.3f}" if mean == mean else "" for mean, error in cells))
    Console().print(table)


if __name__ == "__main__":
    main()
