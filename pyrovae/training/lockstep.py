"""Many runs of one Pyro program as one computation.

The parameters of all runs are stacked along a leading axis, and ``torch.func.vmap`` vectorises the program of one run
over that axis, including effect handlers and KL divergences. ``make_fx`` traces the result into a plain graph of tensor
operations, and ``torch.compile`` turns the graph and Adam into fused kernels. A program that vmap does not support is
called once per run on slices of the same stacked parameters.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import pyro
import torch
from torch import Tensor
from torch.compiler import skip_all_guards_unsafe
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from pyrovae.data import CohortData, as_input
from pyrovae.programs.noise import fork_seed
from pyrovae.programs.pair import Pair
from pyrovae.programs.terms import Terms
from pyrovae.study import Precision
from pyrovae.system.execution import ExecutionMode
from pyrovae.training.adam import Adam, State
from pyrovae.training.precision import autocast_layers, matmul_precision
from pyrovae.training.target_rate import Multiplier

#: Traces a function into a plain graph, without computing anything.
traced = partial(make_fx, tracing_mode="fake", _allow_non_fake_inputs=True)
#: Options of torch's compiler.
COMPILER_OPTIONS: dict[str, Any] = {
    # All steps have the same shapes, which the kernels check anyway.
    "guard_filter_fn": skip_all_guards_unsafe,
    # Not to compile a test program with torch's headers for each instruction set of the CPU, in six seconds. What not
    # every compiler knows, such as AMX, is still tried.
    "cpp.vec_isa_ok": True,
}
#: Number of steps from which tracing pays: it takes as long as fifty steps gain by it.
WORTH_TRACING = 50
#: Gradients by parameter, and the mean loss and rate of each run.
Gradients = tuple[State, tuple[Tensor, Tensor]]


class Batch(NamedTuple):
    """The inputs of a training step.

    Attributes:
        images: all training images, ``[N, *event_shape]``.
        rows: images in the batch of each run, ``[runs, batch]``.
        own_rows: their rows among the training images of the run, ``[runs, batch]``.
        values: further arguments of the programs, by name, ``[runs]``.
        noise: standard normal draws by latent site, ``[runs, batch, ...]``.
        step_sizes: Adam's step size of each run, or one for all, and ε at this step, ``[runs + 1]`` or ``[2]``.
        thresholds: with dynamic binarisation, the threshold of each pixel, ``[runs, batch, *event_shape]``.
        keys: one per run, seeds of torch's generator for draws without injected noise.
    """

    images: Tensor
    rows: Tensor
    own_rows: Tensor
    values: Mapping[str, Tensor]
    noise: Mapping[str, Tensor]
    step_sizes: Tensor
    thresholds: Tensor | None = None
    keys: Sequence[int] = ()


class Lockstep:
    """The runs of a cohort.

    Args:
        pairs: one pair per run, which differ only in the values of their parameters and buffers.
        values: further arguments of the programs, such as β, by name, ``[runs]`` each.
        precision: precision in which the networks are trained.
        target_rates: rates for which training moves β, ``[runs]``; by default, β is constant.

    Attributes:
        params: parameters by name, ``[runs, ...]``, updated in place.
        buffers: buffers by name, ``[runs, ...]``, updated in place.
        values: further arguments of the programs.
        multiplier: moves β among these, and γ with it, if there are target rates.
        mode: how the runs are computed; None until that is chosen.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        values: Mapping[str, Tensor],
        precision: Precision = "float32",
        target_rates: Tensor | None = None,
    ) -> None:
        self.mode: ExecutionMode | None = None
        self.precision = precision
        params, self.buffers = stack_module_state(list(pairs))
        self.params: State = {name: value.detach() for name, value in params.items()}
        self.values = dict(values)
        self.multiplier: Multiplier | None = None
        if target_rates is not None:
            self.multiplier = Multiplier.of(target_rates, self.values["beta"])
            self.values["gamma"] = self.values["beta"]
        self.template = pairs[0]

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def values_of(self, run: int) -> State:
        """The further arguments of one run's programs."""
        return {name: value[run] for name, value in self.values.items()}

    def pair(self, run: int) -> Pair:
        """An independent copy of one run's pair."""
        pair = deepcopy(self.template)
        state = {name: value[run] for name, value in (self.params | self.buffers).items()}
        with torch.no_grad():
            for name, tensor in [*pair.named_parameters(), *pair.named_buffers()]:
                tensor.copy_(state[name])
        return pair

    def single(self, run: int) -> "Lockstep":
        """An independent copy of one run, computed without vmap."""
        one = Lockstep([self.pair(run)], {name: value[run : run + 1] for name, value in self.values.items()})
        one.mode = "sequential"
        return one

    @matmul_precision("float32")
    def refresh(self, data: CohortData, keys: Sequence[int] | None = None) -> None:
        """Refreshes the cached encodings of the training images in every run.

        Args:
            data: the images.
            keys: one per run, given during training: the seed by which images that the next steps need are drawn.
        """
        if not self.template.banks:
            return
        refreshed = []
        for run in range(len(self)):
            pair = self.pair(run)
            pair.refresh(data.of(run).train, None if keys is None else torch.Generator().manual_seed(keys[run]))
            refreshed.append(dict(pair.named_buffers()))
        for name, buffer in self.buffers.items():
            buffer.copy_(torch.stack([each[name] for each in refreshed]))

    def stepper(
        self, mode: ExecutionMode, adam: Adam, example: Batch, steps: int = WORTH_TRACING
    ) -> Callable[[Batch], Tensor]:
        """Sets the execution mode, and returns a function that updates weights, moments and β by one step, in place.

        The function returns the mean losses of the runs, ``[runs]``.

        Args:
            mode: how the runs are computed.
            adam: the moments.
            example: a batch.
            steps: how often the function will be called.

        Raises:
            Exception: whatever torch raises if it cannot vmap the program or compile the graph.
        """
        self.mode = mode

        graph: Callable[..., Gradients] = self.gradients
        if mode == "vmapped" and steps >= WORTH_TRACING:  # a lambda, because make_fx would count self as an argument
            graph = traced(lambda *states: self.gradients(*states))(self.params, self.buffers, example)
        elif mode == "vmapped":  # what vmap does not support is raised here, not in a step
            graph(self.params, tree_map(torch.clone, self.buffers), example)

        fused = mode != "compiled" and example.images.device.type == "cpu"

        def step(params: State, buffers: State, adam: Adam, multiplier: Multiplier | None, batch: Batch) -> Tensor:
            gradients, (losses, rates) = graph(params, buffers, batch)
            (adam.update_fused_ if fused else adam.update_)(params, gradients, batch.step_sizes)
            if multiplier is not None:
                multiplier.update_(rates, batch.step_sizes[:-1])
            return losses

        # torch's compiler switches validation off for good, and recommends TF32, which is a setting of the study.
        with torch.no_grad(), matmul_precision(self.precision), no_validation(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TensorFloat32")
            if mode in ("cuda_graph", "compiled"):
                states = (self.params, self.buffers, adam, self.multiplier)
                rehearsal = (*tree_map_only(Tensor, torch.clone, states), example)
                step = torch.compile(traced(step)(*rehearsal), options=COMPILER_OPTIONS)
                step(*rehearsal)
                del rehearsal
            bound: Callable[[Batch], Tensor] = partial(step, self.params, self.buffers, adam, self.multiplier)
            if mode == "cuda_graph":
                bound = capture(bound, example)
        return torch.no_grad()(matmul_precision(self.precision)(bound))

    def gradients(self, params: State, buffers: State, batch: Batch) -> Gradients:
        """Gradients, losses and rates of all runs."""
        gradient: Callable[..., Gradients] = grad_and_value(self._batch_terms, has_aux=True)
        stacked = (params, buffers, dict(batch.values), dict(batch.noise), batch.rows, batch.own_rows, batch.thresholds)
        with no_validation(), autocast_layers(self.precision):
            if self.mode == "sequential":
                return self._each(batch.keys, lambda run: gradient(*_slice(run, stacked), batch.images))
            in_dims = (0, 0, 0, 0, 0, 0, None if batch.thresholds is None else 0, None)
            return vmap(gradient, in_dims)(*stacked, batch.images)

    @matmul_precision("float32")
    def terms(
        self,
        x: Tensor,
        noise: Mapping[str, Tensor],
        keys: Sequence[int],
        index: Tensor | None = None,
        *,
        of_runs: bool = False,
    ) -> Terms:
        """Distortion, rate and loss of images under every run, ``[runs, batch]`` each.

        Args:
            x: images, ``[batch, *event_shape]``, the same under all runs.
            noise: standard normal draws by latent site, ``[runs, ...]``.
            keys: one per run, seeds of torch's generator for draws without injected noise.
            index: rows of the images in the training set, ``[batch]``; None for other images.
            of_runs: whether ``x`` is ``[runs, batch, *event_shape]`` instead.
        """

        def one(x: Tensor, params: State, buffers: State, values: State, noise: State) -> Terms:
            return functional_call(self.template, (params, buffers), (x, noise), {**values, "index": index})

        self.template.eval()
        stacked = (self.params, self.buffers, self.values, dict(noise))
        with torch.no_grad(), no_validation():
            if self.mode == "sequential":
                return self._each(keys, lambda run: one(x[run] if of_runs else x, *_slice(run, stacked)))
            return vmap(one, (0 if of_runs else None, 0, 0, 0, 0))(x, *stacked)

    def _batch_terms(
        self,
        params: State,
        buffers: State,
        values: State,
        noise: State,
        rows: Tensor,
        own_rows: Tensor,
        thresholds: Tensor | None,
        images: Tensor,
    ) -> tuple[Tensor, Tensor]:
        self.template.train()
        x = as_input(images[rows], thresholds)
        kwargs = {**values, "index": own_rows}
        terms: Terms = functional_call(self.template, (params, buffers), (x, noise), kwargs)
        return terms.loss.mean(), terms.rate.mean()

    def _each(self, keys: Sequence[int], function: Callable[[int], Any]) -> Any:
        results = []
        for run, key in enumerate(keys):
            with fork_seed(key):
                results.append(function(run))
        return tree_map(lambda *parts: torch.stack(parts), *results)


def capture(step: Callable[[Batch], Tensor], example: Batch) -> Callable[[Batch], Tensor]:
    """Captures a step in a CUDA graph, which replaces the launches of its kernels by a single one.

    The graph reads and writes the memory that it was captured with: each batch is copied there first, and everything
    else that the step uses must keep its address.

    Args:
        step: a step that has been called before, so that no set-up work is captured.
        example: a batch; all batches share its images, which are not copied.
    """
    images, *rest = example
    static = Batch(images, *tree_map_only(Tensor, torch.clone, rest))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = step(static)
    kept = graph, step  # the graph reads constants of the step but does not own them

    def replay(batch: Batch) -> Tensor:
        for target, source in zip(tree_leaves(static), tree_leaves(batch), strict=True):
            if isinstance(source, Tensor) and source is not target:
                target.copy_(source, non_blocking=True)
        kept[0].replay()
        return losses.clone()

    return replay


def _slice(run: int, stacked: Any) -> Any:
    return tree_map(lambda tensor: None if tensor is None else tensor[run], stacked)


def no_validation() -> Any:
    """Switches validation off, because it reads values of tensors, which vmap does not allow."""
    return pyro.validation_enabled(False)
