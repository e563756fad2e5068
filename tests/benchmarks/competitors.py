"""The same VAE in other libraries: each function returns one that trains a single run for an epoch."""

import tempfile
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import SVI, Trace_ELBO
from pyro.optim import Adam
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from workloads import BATCH_SIZE, IMAGES, LATENT_SIZE, STEPS, Case, Work

from pyrovae.training.precision import autocast_layers, matmul_precision


def networks(case: Case) -> tuple[nn.Sequential, nn.Sequential]:
    """Encoder and decoder."""

    def mlp(layers: list[tuple[int, int]]) -> nn.Sequential:
        modules = [module for sizes in layers for module in (nn.Linear(*sizes), nn.ReLU())]
        return nn.Sequential(*modules[:-1]).to(case.device)

    middle = case.depth + 1
    return mlp(case.layers[:middle]), mlp(case.layers[middle:])


def data_loader(case: Case) -> DataLoader:
    return DataLoader(TensorDataset(torch.from_numpy(case.inputs())), batch_size=BATCH_SIZE, shuffle=True)


def plain_torch(case: Case) -> Work:
    """A hand-written loop over images in memory."""
    images = torch.from_numpy(case.inputs()).to(case.device)

    def batches() -> Iterable[Tensor]:
        return (images[rows] for rows in torch.randperm(IMAGES, device=case.device).split(BATCH_SIZE))

    return _torch_loop(case, batches)


def torch_loader(case: Case) -> Work:
    """A hand-written loop over a DataLoader."""
    loader = data_loader(case)
    return _torch_loop(case, lambda: (x for (x,) in loader))


def _torch_loop(case: Case, batches: Callable[[], Iterable[Tensor]]) -> Work:
    encoder, decoder = networks(case)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)

    @matmul_precision(case.precision)
    def epoch() -> None:
        for x in batches():
            with autocast_layers(case.precision):
                loc, log_scale = encoder(x).chunk(2, -1)
                z = loc + log_scale.exp() * torch.randn_like(loc)
                logits = decoder(z)
            distortion = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            rate = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
            optimizer.zero_grad()
            ((distortion + rate) / len(x)).backward()
            optimizer.step()

    return epoch


def pyro_svi(case: Case) -> Work:
    """Pyro's SVI over a DataLoader."""
    encoder, decoder = networks(case)
    loader = data_loader(case)

    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), LATENT_SIZE), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=decoder(z), validate_args=False).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    svi = SVI(model, guide, Adam({"lr": 1e-3}), loss=Trace_ELBO())

    @matmul_precision(case.precision)
    def epoch() -> None:
        for (x,) in loader:
            with autocast_layers(case.precision):
                svi.step(x.to(case.device))

    return epoch


def numpyro_jit(case: Case) -> Work:
    """NumPyro's SVI, with a whole epoch in one jitted loop."""
    import jax
    import numpyro
    import numpyro.distributions as dist
    from jax import lax, random
    from jax.example_libraries import stax
    from numpyro import optim
    from numpyro.infer import SVI, Trace_ELBO

    def mlp(layers: list[tuple[int, int]]) -> tuple[Callable, Callable]:
        modules = [module for _, outputs in layers for module in (stax.Dense(outputs), stax.Relu)]
        return stax.serial(*modules[:-1])

    middle = case.depth + 1

    def model(x: jax.Array) -> None:
        decoder = numpyro.module("decoder", mlp(case.layers[middle:]), (BATCH_SIZE, LATENT_SIZE))
        with numpyro.plate("data", BATCH_SIZE):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENT_SIZE]).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        encoder = numpyro.module("encoder", mlp(case.layers[:middle]), (BATCH_SIZE, case.pixels))
        loc, log_scale = jax.numpy.split(encoder(x), 2, -1)
        with numpyro.plate("data", BATCH_SIZE):
            numpyro.sample("z", dist.Normal(loc, jax.numpy.exp(log_scale)).to_event(1))

    images = jax.numpy.asarray(case.inputs())
    svi = SVI(model, guide, optim.Adam(1e-3), Trace_ELBO())
    state, seeds = svi.init(random.PRNGKey(0), images[:BATCH_SIZE]), count(1)

    @jax.jit
    def train(state: Any, key: jax.Array) -> Any:
        rows = random.permutation(key, IMAGES).reshape(STEPS, BATCH_SIZE)
        return lax.fori_loop(0, STEPS, lambda step, state: svi.update(state, images[rows[step]])[0], state)

    def epoch() -> None:
        nonlocal state
        state = jax.block_until_ready(train(state, random.PRNGKey(next(seeds))))

    return epoch


def pythae_trainer(case: Case) -> Work:
    """pythae's VAE and trainer."""
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.network, _ = networks(case)

        def forward(self, x: Tensor) -> ModelOutput:
            loc, log_variance = self.network(x.flatten(1)).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            _, self.network = networks(case)

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.network(z).sigmoid().view(-1, *case.event_shape))

    config = VAEConfig(input_dim=case.event_shape, latent_dim=LATENT_SIZE, reconstruction_loss="bce")
    images = torch.from_numpy(case.inputs()).view(-1, *case.event_shape)
    trainer = BaseTrainer(
        VAE(config, encoder=Encoder(), decoder=Decoder()),
        train_dataset=BaseDataset(images, torch.zeros(IMAGES)),
        training_config=BaseTrainerConfig(
            output_dir=tempfile.mkdtemp(), learning_rate=1e-3, per_device_train_batch_size=BATCH_SIZE, num_epochs=1
        ),
    )
    trainer.prepare_training()
    return lambda: trainer.train_step(1)
