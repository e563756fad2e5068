"""Speed of training: lockstep beside the libraries that people use, and beside what its arithmetic alone takes.

    python -m pip install -c constraints.txt -e '.[bench]'
    python tests/benchmarks/training.py [--rounds N] [--runs R] [--depth 1,3] [--pixels 784,3072]
    python tests/benchmarks/training.py --device cuda --runs 60 --depth 3 --pixels 3072 --precision tf32 [--profile]

All train the same VAE on the same images: one or three hidden layers of 512 on either side, ten latents, a Bernoulli
likelihood, batches of 128, Adam at 1e-3, float32 unless another precision is named. Each contestant has a process of
its own, which is asked for an epoch at a time, in turn with the others; ratios are of the times of one round, told as
their median, least and most. Lockstep trains several runs at once: an image counts once for each run that sees it.

The arithmetic is the matrix products of a step, as `torch.bmm` does them for the same shapes, and Adam, which moves 28
bytes a parameter, at the bandwidth that adding two large arrays reaches.

On a GPU those compete that are written in torch, with images in its memory. `--profile` tells where lockstep's time
goes.
"""

import argparse
import atexit
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import pairwise

import numpy as np

LATENT, BATCH, IMAGES = 10, 128, 4096
#: Takes some steps, a multiple of an epoch.
Work = Callable[[int], object]


@dataclass(frozen=True)
class Shape:
    """What is trained."""

    pixels: int
    depth: int
    runs: int
    width: int = 512
    device: str = "cpu"
    precision: str = "float32"

    @property
    def autocast_layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of every linear layer, those of the decoder after those of the encoder."""
        hidden = [self.width] * self.depth
        halves = ([self.pixels, *hidden, 2 * LATENT], [LATENT, *hidden, self.pixels])
        return [pair for sizes in halves for pair in pairwise(sizes)]

    @property
    def event(self) -> tuple[int, int, int]:
        """Of an image."""
        return (1, 28, 28) if self.pixels == 784 else (3, 32, 32)

    def images(self) -> np.ndarray:
        """Grey images ``[N, C, H, W]``, uint8."""
        return np.random.default_rng(0).integers(0, 256, (IMAGES, *self.event), dtype=np.uint8)

    def floats(self) -> np.ndarray:
        """The same, ``[N, pixels]`` in [0, 1]."""
        return (self.images().reshape(IMAGES, -1) / 255).astype(np.float32)


def lockstep(shape: Shape) -> Work:
    """All runs at once, compiled; batches are gathered from bytes inside the graph."""
    import torch

    from pyrovae import Study
    from pyrovae.build import make_data
    from pyrovae.runner.cohort import start
    from pyrovae.system.memory import freed_memory_kept
    from pyrovae.system.progress import Watch

    with tempfile.TemporaryDirectory() as place:
        np.savez(f"{place}/random.npz", images=shape.images())
        study = Study.of(
            name="benchmark", data=f"{place}/random.npz", split="random", train_ratio=0.98, depth=shape.depth,
            width=shape.width, latent_size=LATENT, batch_size=BATCH, beta=np.geomspace(0.1, 1, shape.runs).tolist(),
            precision=shape.precision,
        )  # fmt: skip
        (cohort,) = study.cohorts()
        training, _ = start(study, cohort, make_data(cohort.shared).to(torch.device(shape.device)))
    step = training.stepper("always", Watch(0).begin("", 0, 0))
    print(f"lockstep: {training.lockstep.way}", file=sys.stderr)
    kept = ExitStack()  # until the process ends, as a training does until its last step
    kept.enter_context(freed_memory_kept())
    atexit.register(kept.close)
    return lambda steps: [step() for _ in range(steps)]


def matrix_products(shape: Shape) -> Work:
    """Of a step of lockstep: forward, and backward to weights and to inputs but those of the first layer."""
    import torch

    from pyrovae.training.precision import matmul_precision

    made = []
    for number, (inputs, outputs) in enumerate(shape.autocast_layers):
        sizes = ((BATCH, inputs), (inputs, outputs), (BATCH, outputs))
        dtype = torch.bfloat16 if shape.precision == "bfloat16" else torch.float32
        x, w, y = (torch.randn(shape.runs, *sides, device=shape.device, dtype=dtype) for sides in sizes)
        made += [(x, w, y), (x.mT, y, torch.empty_like(w))]
        if number:
            made.append((y, w.mT, torch.empty_like(x)))

    @matmul_precision(shape.precision)
    def work(steps: int) -> None:
        for _ in range(steps):
            for left, right, out in made:
                torch.bmm(left, right, out=out)

    return work


def adam(shape: Shape) -> Work:
    """28 bytes a parameter: weight, both moments read and written, the gradient read."""
    import torch

    weights = shape.runs * sum(inputs * outputs + outputs for inputs, outputs in shape.autocast_layers)
    sizes = torch.randn(3, 28 * weights // 12, device=shape.device)  # two are read, one is written

    def work(steps: int) -> None:
        for _ in range(steps):
            torch.add(sizes[0], sizes[1], out=sizes[2])

    return work


def plain_torch(shape: Shape, batches: str = "memory") -> Work:
    """One run in a loop written by hand: images in memory, fused Adam."""
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from pyrovae.training.precision import autocast_layers, matmul_precision

    encoder, decoder = _torch_networks(shape)
    images = torch.from_numpy(shape.floats()).to(shape.device)
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)
    loader = DataLoader(TensorDataset(images), batch_size=BATCH, shuffle=True)

    def epochs(steps: int) -> Iterator[torch.Tensor]:
        for _ in range(steps * BATCH // IMAGES):
            if batches == "loader":
                yield from (x for (x,) in loader)
            else:
                yield from (images[rows] for rows in torch.randperm(IMAGES, device=shape.device).split(BATCH))

    @matmul_precision(shape.precision)
    def work(steps: int) -> None:
        for x in epochs(steps):
            with autocast_layers(shape.precision):
                loc, log_scale = encoder(x).chunk(2, -1)
                z = loc + log_scale.exp() * torch.randn_like(loc)
                logits = decoder(z)
            distortion = nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
            rate = 0.5 * (loc**2 + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
            optimizer.zero_grad()
            ((distortion + rate) / len(x)).backward()
            optimizer.step()

    return work


def torch_loader(shape: Shape) -> Work:
    """The same with a DataLoader."""
    return plain_torch(shape, "loader")


def _torch_networks(shape: Shape) -> tuple:
    from torch import nn

    made = []
    half = shape.depth + 1
    for autocast_layers in (shape.autocast_layers[:half], shape.autocast_layers[half:]):
        parts: list[nn.Module] = []
        for sides in autocast_layers:
            parts += [nn.Linear(*sides), nn.ReLU()]
        made.append(nn.Sequential(*parts[:-1]).to(shape.device))
    return tuple(made)


def pyro_svi(shape: Shape) -> Work:
    """One run as in Pyro's tutorial on the VAE: modules, SVI, Trace_ELBO, a DataLoader."""
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import SVI, Trace_ELBO
    from pyro.optim import Adam
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    from pyrovae.training.precision import autocast_layers, matmul_precision

    class VAE(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder = _torch_networks(shape)

        def model(self, x: torch.Tensor) -> None:
            pyro.module("decoder", self.decoder)
            with pyro.plate("data", len(x)):
                z = pyro.sample("latent", dist.Normal(x.new_zeros(len(x), LATENT), 1.0).to_event(1))
                pyro.sample("obs", dist.Bernoulli(logits=self.decoder(z), validate_args=False).to_event(1), obs=x)

        def guide(self, x: torch.Tensor) -> None:
            pyro.module("encoder", self.encoder)
            with pyro.plate("data", len(x)):
                loc, log_scale = self.encoder(x).chunk(2, -1)
                pyro.sample("latent", dist.Normal(loc, log_scale.exp()).to_event(1))

    vae = VAE()
    svi = SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), loss=Trace_ELBO())
    loader = DataLoader(TensorDataset(torch.from_numpy(shape.floats())), batch_size=BATCH, shuffle=True)

    @matmul_precision(shape.precision)
    def work(steps: int) -> None:
        for _ in range(steps * BATCH // IMAGES):
            for (x,) in loader:
                with autocast_layers(shape.precision):
                    svi.step(x.to(shape.device))

    return work


def numpyro_jit(shape: Shape) -> Work:
    """One run as in NumPyro's example of a VAE: SVI, and an epoch in one jitted loop."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax import lax, random
    from jax.example_libraries import stax
    from numpyro import optim
    from numpyro.infer import SVI, Trace_ELBO

    def network(autocast_layers: list[tuple[int, int]]) -> tuple:
        parts = []
        for _, outputs in autocast_layers:
            parts += [stax.Dense(outputs), stax.Relu]
        return stax.serial(*parts[:-1])

    half = shape.depth + 1

    def model(x: jnp.ndarray) -> None:
        decode = numpyro.module("decoder", network(shape.autocast_layers[half:]), (BATCH, LATENT))
        with numpyro.plate("batch", BATCH):
            z = numpyro.sample("z", dist.Normal(0, 1).expand([LATENT]).to_event(1))
            numpyro.sample("obs", dist.Bernoulli(logits=decode(z)).to_event(1), obs=x)

    def guide(x: jnp.ndarray) -> None:
        encode = numpyro.module("encoder", network(shape.autocast_layers[:half]), (BATCH, shape.pixels))
        loc, log_scale = jnp.split(encode(x), 2, -1)
        with numpyro.plate("batch", BATCH):
            numpyro.sample("z", dist.Normal(loc, jnp.exp(log_scale)).to_event(1))

    images = jnp.asarray(shape.floats())
    svi = SVI(model, guide, optim.Adam(1e-3), Trace_ELBO())
    state = svi.init(random.PRNGKey(0), images[:BATCH])

    @jax.jit
    def epoch(state: object, key: jnp.ndarray) -> object:
        rows = random.permutation(key, IMAGES).reshape(-1, BATCH)

        def body(number: int, state: object) -> object:
            return svi.update(state, images[rows[number]])[0]

        return lax.fori_loop(0, IMAGES // BATCH, body, state)

    kept, keys = [state], iter(random.split(random.PRNGKey(1), 100_000))

    def work(steps: int) -> None:
        for _ in range(steps * BATCH // IMAGES):
            kept[0] = epoch(kept[0], next(keys))
        jax.block_until_ready(kept[0])

    return work


def pythae_trainer(shape: Shape) -> Work:
    """One run as pythae has it: its VAE with networks of these sizes, and epochs of its trainer."""
    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from torch import nn

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.autocast_layers, _ = _torch_networks(shape)

        def forward(self, x: torch.Tensor) -> ModelOutput:
            loc, log_variance = self.autocast_layers(x.flatten(1)).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            _, autocast_layers = _torch_networks(shape)
            self.autocast_layers = nn.Sequential(autocast_layers, nn.Sigmoid())

        def forward(self, z: torch.Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.autocast_layers(z).view(-1, *shape.event))

    config = VAEConfig(input_dim=shape.event, latent_dim=LATENT, reconstruction_loss="bce")
    images = torch.from_numpy(shape.floats()).view(-1, *shape.event)
    training = BaseTrainerConfig(
        output_dir=tempfile.mkdtemp(), learning_rate=1e-3, per_device_train_batch_size=BATCH, num_epochs=1
    )
    trainer = BaseTrainer(
        VAE(config, encoder=Encoder(), decoder=Decoder()),
        train_dataset=BaseDataset(images, torch.zeros(IMAGES)),
        training_config=training,
    )
    trainer.prepare_training()
    return lambda steps: [trainer.train_step(1) for _ in range(steps * BATCH // IMAGES)]


#: Each with the packages whose versions are told; the first is what the others are compared to.
CONTESTANTS: dict[str, tuple[Callable[[Shape], Work], tuple[str, ...]]] = {
    "lockstep": (lockstep, ("torch", "pyro-ppl")),
    "matrix products alone": (matrix_products, ("torch",)),
    "Adam at full bandwidth": (adam, ("torch",)),
    "plain PyTorch": (plain_torch, ("torch",)),
    "PyTorch, DataLoader": (torch_loader, ("torch",)),
    "NumPyro, jit": (numpyro_jit, ("numpyro", "jax")),
    "Pyro, SVI": (pyro_svi, ("pyro-ppl",)),
    "pythae": (pythae_trainer, ("pythae",)),
}
#: Large pages for all who use torch, as `pyrovae run` has them.
ENVIRONMENT = os.environ | {"THP_MEM_ALLOC_ENABLE": "1"}
#: Those that compete on a GPU.
IN_TORCH = ("lockstep", "matrix products alone", "Adam at full bandwidth", "plain PyTorch", "Pyro, SVI")
#: What all runs of lockstep take together; the others train one.
OF_ALL_RUNS = ("lockstep", "matrix products alone", "Adam at full bandwidth")


class Contestant:
    """A process that takes steps when it is asked to."""

    def __init__(self, name: str, shape: Shape) -> None:
        command = [sys.executable, __file__, "--contestant", name, json.dumps(asdict(shape))]
        self._process = subprocess.Popen(
            command, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds(IMAGES // BATCH)  # compiles, and fills caches

    def seconds(self, steps: int) -> float:
        """Of a step, over some."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(steps, file=self._process.stdin, flush=True)
        return float(self._process.stdout.readline()) / steps

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def serve(name: str, shape: Shape) -> None:
    """A contestant's side: reads numbers of steps, writes the seconds that these took."""
    import torch

    answers, sys.stdout = sys.stdout, sys.stderr  # which libraries may write to
    work = CONTESTANTS[name][0](shape)
    for line in sys.stdin:
        before = time.perf_counter()
        work(int(line))
        if shape.device == "cuda":
            torch.cuda.synchronize()
        print(time.perf_counter() - before, file=answers, flush=True)


def compare(shape: Shape, rounds: int, names: list[str]) -> None:
    """Prints the table of one shape. Images are counted once for each run that sees them."""
    contestants = {name: Contestant(name, shape) for name in names}
    epoch = IMAGES // BATCH
    times: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            times[name].append(contestants[name].seconds(epoch))
    for contestant in contestants.values():
        contestant.close()
    print(
        f"\n{shape.pixels:,} pixels, {shape.depth} hidden layers of {shape.width}, {shape.runs} runs in lockstep in "
        f"{shape.precision} on {shape.device}"
    )
    for name in names:
        runs = shape.runs if name in OF_ALL_RUNS else 1
        rates = [runs * BATCH / seconds for seconds in times[name]]
        ratios = [
            shape.runs / runs * theirs / ours for ours, theirs in zip(times["lockstep"], times[name], strict=True)
        ]
        versions = ", ".join(f"{each} {metadata.version(each)}" for each in CONTESTANTS[name][1])
        faster = f"lockstep is {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) times as fast"
        print(
            f"  {name:24} {statistics.median(times[name]) * 1e3:7.1f} ms a step   "
            f"{statistics.median(rates):8,.0f} images/s and run   "
            f"{'' if name == 'lockstep' else faster:48}   {versions}"
        )
    both = [sum(parts) for parts in zip(times["matrix products alone"], times["Adam at full bandwidth"], strict=True)]
    shares = [alone / ours for alone, ours in zip(both, times["lockstep"], strict=True)]
    print(
        f"  lockstep reaches {statistics.median(shares):.0%} ({min(shares):.0%} to {max(shares):.0%}) of what matrix "
        "products and Adam alone allow"
    )


def profile(shape: Shape) -> None:
    """Prints what the time of an epoch of lockstep goes to, by kernels on a GPU."""
    from torch.profiler import profile as profiled

    work = lockstep(shape)
    work(IMAGES // BATCH)
    with profiled() as found:
        work(IMAGES // BATCH)
    print(found.key_averages().table(sort_by=f"self_{shape.device}_time_total", row_limit=25))


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--runs", type=int, default=8)
    parser.add_argument("--depth", type=numbers, default=[1, 3])
    parser.add_argument("--pixels", type=numbers, default=[784, 3072])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--precision", choices=["float32", "tf32", "bfloat16"], default="float32")
    parser.add_argument("--profile", action="store_true", help="the profile of lockstep alone")
    parser.add_argument("--contestant", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.contestant:
        name, shape = asked.contestant
        serve(name, Shape(**json.loads(shape)))
        return
    for pixels in asked.pixels:
        for depth in asked.depth:
            shape = Shape(pixels, depth, asked.runs, device=asked.device, precision=asked.precision)
            if asked.profile:
                profile(shape)
            else:
                compare(shape, asked.rounds, list(CONTESTANTS if asked.device == "cpu" else IN_TORCH))


if __name__ == "__main__":
    main()
