"""Many runs of one Pyro program as one computation.

The parameters of all runs are stacked along a leading axis, and the program that was written for one run is
lifted over that axis by ``torch.func.vmap``: effect handlers, KL and all. ``make_fx`` then leaves a plain graph
of tensor operations, and ``torch.compile`` turns it into fused kernels together with Adam. A program that cannot be
lifted is called run by run over the same stacked parameters, so that nothing else has to know.
"""

import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import pyro
import torch
from torch import Tensor
from torch.compiler import skip_all_guards_unsafe
from torch.func import functional_call, grad_and_value, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from pyrovae.data import as_input
from pyrovae.programs.noise import fork_seed
from pyrovae.programs.pair import Pair, Terms
from pyrovae.study.grid import Precision
from pyrovae.training.adam import Adam, State
from pyrovae.training.precision import autocast_layers, matmul_precision

#: How a cohort is computed: compiled kernels over all runs at once, which a GPU gets as one graph, or those as such, or
#: eager ones, or one run after the other.
ExecutionMode = Literal["cuda_graph", "compiled", "vmapped", "sequential"]
EXECUTION_MODES: tuple[ExecutionMode, ...] = get_args(ExecutionMode)
#: Gradients by parameter, and the mean loss of each run.
Gradients = tuple[State, Tensor]


class Batch(NamedTuple):
    """What a step takes.

    Attributes:
        images: all training images, ``[N, *event_shape]``.
        rows: images in the batch of each run, ``[runs, batch]``.
        values: what the programs take beside images, by name, ``[runs]``.
        noise: standard normal draws by latent site, ``[runs, batch, ...]``.
        rates: Adam's step size and ε at this step, ``[2]``.
        thresholds: where pixels are binarised anew, what each is held against, ``[runs, batch, *event_shape]``.
        keys: one a run, for what has to be drawn from torch's generator.
    """

    images: Tensor
    rows: Tensor
    values: Mapping[str, Tensor]
    noise: Mapping[str, Tensor]
    step_sizes: Tensor
    thresholds: Tensor | None = None
    keys: Sequence[int] = ()


class Lockstep:
    """The runs of a cohort.

    Args:
        pairs: one pair a run, alike but for the numbers in them.
        values: what the programs may take beside images, by name: β first of all, ``[runs]`` each.
        precision: in which the networks are trained.

    Attributes:
        params: parameters by name, ``[runs, ...]``, in the same memory always.
        buffers: buffers by name, ``[runs, ...]``, in the same memory always.
        way: how the runs are computed, once that is decided.
    """

    def __init__(self, pairs: Sequence[Pair], values: Mapping[str, Tensor], precision: Precision = "float32") -> None:
        self.mode: ExecutionMode | None = None
        self.precision = precision
        params, self.buffers = stack_module_state(list(pairs))
        self.params: State = {name: value.detach() for name, value in params.items()}
        self.values = dict(values)
        self.template = deepcopy(pairs[0])

    def __len__(self) -> int:
        return len(next(iter(self.values.values())))

    def values_of(self, run: int) -> State:
        """What one run's programs take beside images."""
        return {name: value[run] for name, value in self.values.items()}

    def pair(self, run: int) -> Pair:
        """A copy of one run's pair, ready to use by itself."""
        pair = deepcopy(self.template)
        state = {name: value[run] for name, value in (self.params | self.buffers).items()}
        with torch.no_grad():
            for name, tensor in [*pair.named_parameters(), *pair.named_buffers()]:
                tensor.copy_(state[name])
        return pair

    @matmul_precision("float32")
    def refresh(self, images: Tensor, keys: Sequence[int] | None = None) -> None:
        """Encodes training images anew for the parts of every run that hold encodings of them.

        Args:
            images: training images, ``[N, *event_shape]``.
            keys: one a run; where they are given, as while training, only what a step needs has to be renewed.
        """
        if not self.template.banks:
            return
        renewed = []
        for run in range(len(self)):
            pair = self.pair(run)
            pair.refresh(images, None if keys is None else torch.Generator().manual_seed(keys[run]))
            renewed.append(dict(pair.named_buffers()))
        for name, buffer in self.buffers.items():
            buffer.copy_(torch.stack([each[name] for each in renewed]))

    def stepper(self, mode: ExecutionMode, adam: Adam, example: Batch) -> Callable[[Batch], Tensor]:
        """Decides the way, and returns what takes a step: it renews parameters and moments in place.

        What it returns are the mean losses of the runs, ``[runs]``.

        Raises:
            Exception: whatever torch raises where the program cannot be lifted, or the graph not be compiled.
        """
        self.mode = mode

        graph: Callable[..., Gradients] = self.gradients
        if mode == "vmapped":  # make_fx counts arguments, and would count self
            graph = make_fx(lambda *states: self.gradients(*states))(self.params, self.buffers, example)

        fused = mode != "compiled" and example.images.device.type == "cpu"

        def step(params: State, buffers: State, adam: Adam, batch: Batch) -> Tensor:
            gradients, losses = graph(params, buffers, batch)
            (adam.update_fused_ if fused else adam.update_)(params, gradients, batch.step_sizes)
            return losses

        # torch's compiler ends validation for good, and advises TF32, which is the study's to choose.
        with torch.no_grad(), matmul_precision(self.precision), no_validation(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TensorFloat32")
            if mode in ("cuda_graph", "compiled"):
                rehearsal = (*tree_map_only(Tensor, torch.clone, (self.params, self.buffers, adam)), example)
                # No guards: a step is called with the same shapes throughout, which the kernels themselves check.
                step = torch.compile(make_fx(step)(*rehearsal), options={"guard_filter_fn": skip_all_guards_unsafe})
                step(*rehearsal)
                del rehearsal
            taken: Callable[[Batch], Tensor] = partial(step, self.params, self.buffers, adam)
            if mode == "cuda_graph":
                taken = captured(taken, example)
        return torch.no_grad()(matmul_precision(self.precision)(taken))

    def gradients(self, params: State, buffers: State, batch: Batch) -> Gradients:
        """Gradients and losses of every run, lifted or run by run."""
        gradient: Callable[..., Gradients] = grad_and_value(self._batch_loss)
        stacked = (params, buffers, dict(batch.values), dict(batch.noise), batch.rows, batch.thresholds)
        with no_validation(), autocast_layers(self.precision):
            if self.mode == "sequential":
                return self._each(batch.keys, lambda run: gradient(*_slice(run, stacked), batch.images))
            in_dims = (0, 0, 0, 0, 0, None if batch.thresholds is None else 0, None)
            return vmap(gradient, in_dims)(*stacked, batch.images)

    @matmul_precision("float32")
    def terms(self, x: Tensor, noise: Mapping[str, Tensor], keys: Sequence[int], index: Tensor | None = None) -> Terms:
        """Distortion, rate and loss of the same images under every run, ``[runs, batch]`` each.

        Args:
            x: images, ``[batch, *event_shape]``.
            noise: standard normal draws by latent site, ``[runs, ...]``.
            keys: one a run, for what has to be drawn from torch's generator.
            index: which training images they are, ``[batch]``; None if they are none.
        """

        def one(params: State, buffers: State, values: State, noise: State) -> Terms:
            return functional_call(self.template, (params, buffers), (x, noise), {**values, "index": index})

        self.template.eval()
        stacked = (self.params, self.buffers, self.values, dict(noise))
        with torch.no_grad(), no_validation():
            if self.mode == "sequential":
                return self._each(keys, lambda run: one(*_slice(run, stacked)))
            return vmap(one)(*stacked)

    def _batch_loss(
        self,
        params: State,
        buffers: State,
        values: State,
        noise: State,
        rows: Tensor,
        thresholds: Tensor | None,
        images: Tensor,
    ) -> Tensor:
        self.template.train()
        x = as_input(images[rows], thresholds)
        taken = {**values, "index": rows}
        return functional_call(self.template, (params, buffers), (x, noise), taken).loss.mean()

    def _each(self, keys: Sequence[int], function: Callable[[int], Any]) -> Any:
        results = []
        for run, key in enumerate(keys):
            with fork_seed(key):
                results.append(function(run))
        return tree_map(lambda *parts: torch.stack(parts), *results)


def captured(step: Callable[[Batch], Tensor], example: Batch) -> Callable[[Batch], Tensor]:
    """A step as a CUDA graph, which a GPU is told to do in one call instead of one for each of its kernels.

    The graph works on the memory that it was captured with: a batch is copied there first, and what else the step reads
    and writes must stay where it is.

    Args:
        step: a step that was taken before, so that nothing of it is set up while it is captured.
        example: a batch; its images are those of all batches, and are not copied.
    """
    images, *rest = example
    place = Batch(images, *tree_map_only(Tensor, torch.clone, rest))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        losses = step(place)
    kept = graph, step  # the graph reads constants of the step, and does not hold them

    def replay(batch: Batch) -> Tensor:
        for there, given in zip(tree_leaves(place), tree_leaves(batch), strict=True):
            if isinstance(given, Tensor) and given is not there:
                there.copy_(given, non_blocking=True)
        kept[0].replay()
        return losses.clone()

    return replay


def _slice(run: int, stacked: Any) -> Any:
    return tree_map(lambda tensor: None if tensor is None else tensor[run], stacked)


def no_validation() -> Any:
    """Validation would read values out of tensors, which a lifted program does not have."""
    return pyro.validation_enabled(False)
