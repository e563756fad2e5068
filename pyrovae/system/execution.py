"""How a study is computed: choices that change no statistics, and that the provenance records."""

from dataclasses import dataclass
from typing import Literal, get_args

from pyrovae.errors import InputError

#: How a cohort is computed: all runs at once, as one CUDA graph of compiled kernels, as compiled kernels, or by eager
#: vmap; or one run after the other.
ExecutionMode = Literal["cuda_graph", "compiled", "vmapped", "sequential"]
EXECUTION_MODES: tuple[ExecutionMode, ...] = get_args(ExecutionMode)
Compile = Literal["auto", "always", "never"]
#: What multiplies float32 matrices on a CPU, and how it is chosen.
Library = Literal["blas", "onednn"]
Matmul = Literal["auto", Library]


@dataclass(frozen=True)
class Execution:
    """Execution options of a study.

    Attributes:
        device: "auto" (CUDA if available), "cpu" or "cuda".
        compile: whether to compile the training step; "auto" does if enough steps are left.
        matmul: what multiplies float32 matrices on a CPU; "auto" is the faster one on this machine.
        scheduler: address or file of a Dask scheduler, "local" for a cluster on this machine, None for this process.
        quiet: print nothing.

    Raises:
        InputError: an option is none of its choices.
    """

    device: str = "auto"
    compile: Compile = "auto"
    matmul: Matmul = "auto"
    scheduler: str | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        for name, choices in {"compile": get_args(Compile), "matmul": get_args(Matmul)}.items():
            if (value := getattr(self, name)) not in choices:
                raise InputError(f"{name}: expected {', '.join(choices)}, got '{value}'")
