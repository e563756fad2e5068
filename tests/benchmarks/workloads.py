"""The training step that benchmarks time, and the arithmetic that bounds it from below."""

import atexit
import statistics
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from cost import seconds
from torch import Tensor

from pyrovae import Study
from pyrovae.build import make_cohort_data
from pyrovae.runner.setup import start
from pyrovae.study import Precision
from pyrovae.system.execution import Matmul
from pyrovae.system.matmul import multiplied_by, onednn_is_exact, using
from pyrovae.system.memory import freed_memory_kept
from pyrovae.system.progress import StudyProgress
from pyrovae.training.precision import matmul_precision

LATENT_SIZE, BATCH_SIZE, IMAGES = 10, 128, 4096
#: Steps in an epoch.
STEPS = IMAGES // BATCH_SIZE
#: The function that is timed.
Work = Callable[[], object]
#: Multiplies two batches of matrices into a third.
Product = Callable[[Tensor, Tensor, Tensor], None]


@dataclass(frozen=True)
class Case:
    """Sizes of the VAE and of the cohort."""

    pixels: int
    depth: int
    runs: int
    width: int = 512
    device: str = "cpu"
    precision: Precision = "float32"

    @property
    def layers(self) -> list[tuple[int, int]]:
        """Inputs and outputs of every linear layer, encoder first."""
        hidden = [self.width] * self.depth
        networks = ([self.pixels, *hidden, 2 * LATENT_SIZE], [LATENT_SIZE, *hidden, self.pixels])
        return [layer for sizes in networks for layer in pairwise(sizes)]

    @property
    def event_shape(self) -> tuple[int, int, int]:
        return (1, 28, 28) if self.pixels == 784 else (3, 32, 32)

    def images(self) -> np.ndarray:
        """Random images ``[N, *event_shape]``, uint8."""
        return np.random.default_rng(0).integers(0, 256, (IMAGES, *self.event_shape), dtype=np.uint8)

    def inputs(self) -> np.ndarray:
        """The images as ``[N, pixels]`` in [0, 1], float32."""
        return (self.images().reshape(IMAGES, -1) / 255).astype(np.float32)


def lockstep(case: Case, matmul: Matmul = "auto") -> Work:
    """A compiled training step of all runs."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/random.npz", images=case.images())
        study = Study(
            name="benchmark", data=f"{folder}/random.npz", split="random", train_ratio=0.98, depth=case.depth,
            width=case.width, latent_size=LATENT_SIZE, batch_size=BATCH_SIZE, precision=case.precision,
            beta=np.geomspace(0.1, 1, case.runs).tolist(),
        )  # fmt: skip
        (cohort,) = study.cohorts()
        training, _ = start(study.measure, cohort, make_cohort_data(cohort.runs).to(torch.device(case.device)))
    step = training.stepper("always", StudyProgress())
    surroundings = ExitStack()  # of a study, until the process ends
    surroundings.enter_context(multiplied_by(matmul))
    surroundings.enter_context(freed_memory_kept())
    atexit.register(surroundings.close)
    return step


def bmm(left: Tensor, right: Tensor, out: Tensor) -> None:
    torch.bmm(left, right, out=out)


def loop_of_mm(left: Tensor, right: Tensor, out: Tensor) -> None:
    for run in range(len(out)):
        torch.mm(left[run], right[run], out=out[run])


def by_onednn(left: Tensor, right: Tensor, out: Tensor) -> None:
    with using("onednn"):
        torch.bmm(left, right, out=out)


#: Ways to multiply the matrices of all runs on a CPU, without rounding float32 numbers.
PRODUCTS: dict[str, Product] = {"bmm": bmm, "mm": loop_of_mm} | ({"oneDNN": by_onednn} if onednn_is_exact() else {})


def operands(case: Case) -> list[tuple[str, Tensor, Tensor, Tensor]]:
    """Name, factors and result of every matrix product of a step, with the strides that they have in it."""
    dtype = torch.bfloat16 if case.precision == "bfloat16" else torch.float32
    found = []
    for number, (inputs, outputs) in enumerate(case.layers):
        shapes = (BATCH_SIZE, inputs), (outputs, inputs), (BATCH_SIZE, outputs)
        x, w, y = (torch.randn(case.runs, *shape, device=case.device, dtype=dtype) for shape in shapes)
        layer = f"{inputs} → {outputs}"
        found += [(f"{layer} forward", x, w.mT, y), (f"{layer} weights", y.mT, x, torch.empty_like(w))]
        if number:  # images need no gradient
            found.append((f"{layer} inputs", y, w, torch.empty_like(x)))
    return found


def timed(product: Product, left: Tensor, right: Tensor, out: Tensor) -> float:
    """The median of some times, in seconds."""
    return statistics.median(seconds(lambda: product(left, right, out)) for _ in range(7))


def fastest(left: Tensor, right: Tensor, out: Tensor) -> Product:
    """The fastest way to multiply; on a GPU, `torch.bmm`."""
    if out.device.type != "cpu":
        return bmm
    return min(PRODUCTS.values(), key=lambda product: timed(product, left, right, out))


def matrix_products(case: Case) -> Work:
    """All matrix products of a step, forward and backward, each by the fastest way."""
    with matmul_precision(case.precision):
        products = [(fastest(*factors), *factors) for _, *factors in operands(case)]

    @matmul_precision(case.precision)
    def work() -> None:
        for product, left, right, out in products:
            product(left, right, out)

    return work


def adam(case: Case) -> Work:
    """The memory traffic of Adam: it reads weight, gradient and moments and writes all but the gradient, 28 bytes."""
    parameters = case.runs * sum(inputs * outputs + outputs for inputs, outputs in case.layers)
    left, right, out = torch.randn(3, 28 * parameters // 12, device=case.device)
    return lambda: torch.add(left, right, out=out)
