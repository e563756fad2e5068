"""Choice of the execution mode of a cohort."""

from collections.abc import Sequence

import torch

from pyrovae.system.execution import EXECUTION_MODES, Compile, ExecutionMode

#: With "auto", the number of steps from which compilation pays: the first one costs about 700 steps, later ones 200.
WORTH_COMPILING = 400


def candidate_modes(
    device: torch.device, steps: int, compile: Compile, previous: ExecutionMode | None
) -> Sequence[ExecutionMode]:
    """Execution modes for runs that can be vmapped, in the order in which to try them.

    A resumed cohort keeps its ``previous`` mode if the device supports it.

    Example:
        >>> candidate_modes(torch.device("cpu"), 100, "auto", previous=None)
        ('vmapped', 'sequential')
    """
    fastest: ExecutionMode = "cuda_graph" if device.type == "cuda" else "compiled"
    if previous in ("cuda_graph", "compiled"):
        first = fastest
    elif previous is not None:
        first = previous
    else:
        first = fastest if compile == "always" or (compile == "auto" and steps >= WORTH_COMPILING) else "vmapped"
    return EXECUTION_MODES[EXECUTION_MODES.index(first) :]
