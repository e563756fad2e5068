"""Rate–distortion and generalization studies of variational autoencoders, written as Pyro programs.

Names are loaded when they are used, so that ``pyrovae --help`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyrovae.build import make_data, make_pair, open_results
    from pyrovae.errors import InputError
    from pyrovae.experiment import run
    from pyrovae.pair import Pair
    from pyrovae.results import Results
    from pyrovae.study import Run, Study

_HOMES = {
    "InputError": "pyrovae.errors",
    "Pair": "pyrovae.pair",
    "Results": "pyrovae.results",
    "Run": "pyrovae.study",
    "Study": "pyrovae.study",
    "make_data": "pyrovae.build",
    "make_pair": "pyrovae.build",
    "open_results": "pyrovae.build",
    "run": "pyrovae.experiment",
}

__all__ = ["InputError", "Pair", "Results", "Run", "Study", "make_data", "make_pair", "open_results", "run"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'pyrovae' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
