"""Rate–distortion and generalization studies of variational autoencoders, written as Pyro programs.

Names are loaded when they are used, so that ``pyrovae --help`` needs no torch.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrovae.build import make_data, make_pair
    from pyrovae.errors import InputError
    from pyrovae.programs.pair import Pair
    from pyrovae.runner.fit import fit, load
    from pyrovae.runner.open import open_results
    from pyrovae.runner.run import run
    from pyrovae.store.results import Results
    from pyrovae.study import Run, Study
    from pyrovae.training.trainer import Metrics

# In a checkout, models/, guides/ and analysis/ are next to this folder instead of in it.
if not (Path(__file__).parent / "models").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

_HOMES = {
    "InputError": "pyrovae.errors",
    "Metrics": "pyrovae.training.trainer",
    "Pair": "pyrovae.programs.pair",
    "Results": "pyrovae.store.results",
    "Run": "pyrovae.study",
    "Study": "pyrovae.study",
    "fit": "pyrovae.runner.fit",
    "load": "pyrovae.runner.fit",
    "make_data": "pyrovae.build",
    "make_pair": "pyrovae.build",
    "open_results": "pyrovae.runner.open",
    "run": "pyrovae.runner.run",
}

__all__ = [
    "InputError",
    "Metrics",
    "Pair",
    "Results",
    "Run",
    "Study",
    "fit",
    "load",
    "make_data",
    "make_pair",
    "open_results",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pyrovae' has no attribute '{name}'")
    import_module("pyrovae.system.surroundings").prepare()
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
