"""Sets up the training of a cohort, with all checks that need its images and pairs."""

from copy import deepcopy

import torch
from torch import Tensor

from pyrovae.build import assemble, check_weights, make_likelihood, user_sources
from pyrovae.data import CohortData, as_input
from pyrovae.errors import InputError, UnsupportedError
from pyrovae.parts import MEMORY
from pyrovae.programs.checks import PairProperties
from pyrovae.programs.inputs import outside
from pyrovae.programs.noise import fork_seed
from pyrovae.programs.pair import Pair
from pyrovae.study import Cohort, Measure, Run
from pyrovae.system import memory
from pyrovae.system.provenance import software_versions
from pyrovae.training.lockstep import Lockstep
from pyrovae.training.streams import Streams
from pyrovae.training.trainer import Training

#: Largest share of the free memory that a cohort may take.
MEMORY_SHARE = 0.8


def start(measure: Measure, cohort: Cohort, data: CohortData) -> tuple[Training, PairProperties]:
    """Sets up the training of a cohort, and checks its pairs on a first batch.

    Returns:
        The training before its first step, and the properties of its pairs.
    """
    shared, device = cohort.shared, data.device
    _check_support(shared, data)
    check_weights(shared, data.images.event_shape)
    pairs = _pairs(cohort, data)
    pair = deepcopy(pairs[0])  # the checks would change buffers, such as the running statistics of batch norm
    properties = pair_properties(pair, cohort, data)
    needed = len(cohort.runs) * bytes_of_a_run(pair, cohort, data)
    memory.check_memory(needed, f"{len(cohort.runs)} runs in lockstep", device, share=MEMORY_SHARE)
    if measure.temperatures:
        _check_annealing(pair, _first_batch(cohort, data))
    weights = [run.weights() for run in cohort.runs]
    values = {name: torch.tensor([each[name] for each in weights]).to(device) for name in weights[0]}
    seeds = [run.seed for run in cohort.runs]
    targets = [run.target_rate for run in cohort.runs if run.target_rate is not None]
    lockstep = Lockstep(pairs, values, shared.precision, torch.tensor(targets).to(device) if targets else None)
    streams = Streams(seeds, data.size, shared.batch_size, properties.noise_shapes, device)
    versions = ", ".join([software_versions(), *user_sources(shared)])
    return Training(lockstep, streams, data, cohort, measure, versions), properties


def _pairs(cohort: Cohort, data: CohortData) -> list[Pair]:
    """The pair of each run, with initial weights and encodings; runs with the same seed and images share them."""
    pairs: dict[tuple[int, int], Pair] = {}
    keys = [(run.seed, run.training_set) for run in cohort.runs]
    for key in dict.fromkeys(keys):
        number = keys.index(key)
        own = data.of(number)
        pair = assemble(cohort.runs[number], own.event_shape, own.mean().cpu(), own.train).to(data.device)
        pair.refresh(own.train)
        pairs[key] = pair
    return [pairs[key] for key in keys]


def check_precision(cohort: Cohort, device: torch.device) -> None:
    """Raises InputError if a device does not support the precision of a cohort."""
    if cohort.shared.precision == "tf32" and device.type != "cuda":
        raise InputError(f"precision: tf32 is for GPUs, got the device {device}; take float32, or --device cuda")


def pair_properties(pair: Pair, cohort: Cohort, data: CohortData) -> PairProperties:
    """Properties of a pair, from the first batch.

    Raises:
        InputError: as `Pair.check`, or the data make a component that ships leave its range.
        ValueError: Pyro found a mistake in a component of the user's.
    """
    batch = _first_batch(cohort, data)
    try:
        return pair.check(batch, beta=0.5, gamma=0.25, index=torch.arange(len(batch), device=batch.device))
    except ValueError as error:
        if isinstance(error, InputError) or user_sources(cohort.shared):
            raise
        raise InputError(
            f"data: expected values near 1 in size, got up to {float(batch.abs().max()):.3g}, with which the untrained "
            "networks leave their range; scale the data"
        ) from error


def _first_batch(cohort: Cohort, data: CohortData) -> Tensor:
    return as_input(data.of(0).train[: cohort.shared.batch_size])


def bytes_of_a_run(pair: Pair, cohort: Cohort, data: CohortData) -> int:
    """Memory that training takes for each run of a cohort.

    It counts weights, gradients and both moments; three of these again for the rehearsal of a step or the checkpoint;
    buffers, again in the rehearsal; the best weights, if they are kept; and the activations of a batch, with as much
    again for temporaries of the backward pass and half of that for its own results.
    """
    saved, x = 0, _first_batch(cohort, data)

    def count(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor.detach()  # a graph that holds its own results would never be freed

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), fork_seed(0):
        pair(x, index=torch.arange(len(x), device=x.device))
    weights, buffers = (sum(each.nbytes for each in tensors) for tensors in (pair.parameters(), pair.buffers()))
    best = weights + buffers if cohort.shared.keep == "best" else 0
    return (4 + 3) * weights + 2 * buffers + 3 * saved + best


def _check_annealing(pair: Pair, x: Tensor) -> None:
    """Raises InputError if log p(x) of a pair cannot be bounded by annealing."""
    try:
        q, _ = pair.latent(x)
        pair.likelihood(x, q.sample())
    except UnsupportedError as error:
        raise InputError(f"temperatures: this pair does not support annealing: {error}") from None


def _check_support(run: Run, data: CohortData) -> None:
    """Raises InputError if images are outside the support of the likelihood, before they are measured at the end."""
    if run.pair is not None:
        return
    support = make_likelihood(run, data.images.event_shape).support
    source = "data in memory" if run.data.startswith(MEMORY) else f"'{run.data}'"
    for _, images in data.images.splits():
        for chunk in images.split(4096):
            x = as_input(chunk)
            if support.check(x).all():
                continue
            if chunk.dtype == torch.uint8 and support.is_discrete:
                raise InputError(
                    f"likelihood: '{run.likelihood}' on {source}: expected counts, got uint8, which means pixels; give "
                    "them as another type, as by x.astype(int)"
                )
            raise InputError(f"likelihood: '{run.likelihood}' on {source}: {outside(x, support)}")
