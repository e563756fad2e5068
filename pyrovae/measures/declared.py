"""Measures by name, with the numbers that they declare."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from importlib import import_module
from types import ModuleType

from pyrovae import parts
from pyrovae.errors import InputError
from pyrovae.measures.measure import MeasureResult, Quantity, TrainedRun
from pyrovae.study import Measure


@dataclass(frozen=True)
class DeclaredMeasure:
    """A measure and its declarations.

    Attributes:
        name: as a study names it.
        function: trained run → result.
        quantities: what the result contains, in the order of the table's columns.
        cost: settings → the steps of progress that it reports for one run.
        on_request: whether it is applied only where a study or a command names it.
    """

    name: str
    function: Callable[[TrainedRun], MeasureResult]
    quantities: tuple[Quantity, ...]
    cost: Callable[[Measure], int]
    on_request: bool = False


@cache
def shipped() -> tuple[DeclaredMeasure, ...]:
    """The measures by their names in a study, those of installed distributions included."""
    return declared(parts.names("measure"))


def of_settings(settings: Measure) -> tuple[DeclaredMeasure, ...]:
    """The measures of a study, with those in its ``measure.also``.

    Raises:
        InputError: as `declared`.
    """
    known = declared(parts.names("measure"), settings.also)
    return tuple(each for each in known if not each.on_request or each.name in settings.also)


def declared(names: Iterable[str], further: Iterable[str] = ()) -> tuple[DeclaredMeasure, ...]:
    """The measures of these names, each once.

    Args:
        names: names of measures that ship, or ``module:function``.
        further: more of these.

    Raises:
        InputError: a measure does not exist or declares nothing, or two declare the same name.

    Example:
        >>> [quantity.heading for quantity in declared(["likelihood"])[0].quantities][:2]
        ['log p(x) ≥', 'ELBO, same images']
    """
    found = tuple(_load(name) for name in dict.fromkeys([*names, *further]))
    _check_unique(found, "name", [(each.name, name) for each in found for name in _names(each)])
    headings = [(each.name, q.heading) for each in found for q in each.quantities if q.heading]
    _check_unique(found, "heading", headings)
    return found


def _load(name: str) -> DeclaredMeasure:
    function = parts.resolve("measure", name)
    module = import_module(parts.names("measure").get(name, name).partition(":")[0])
    quantities = getattr(module, "QUANTITIES", None)
    if not isinstance(quantities, tuple) or not all(isinstance(each, Quantity) for each in quantities):
        raise InputError(
            f"measure: expected QUANTITIES, a tuple of Quantity, in the module {module.__name__} of '{name}', "
            f"got {'none' if quantities is None else type(quantities).__name__}"
        )
    group = _group(name, module)
    placed = tuple(replace(each, group=each.group or group) for each in quantities)
    on_request = getattr(module, "ON_REQUEST", False)
    return DeclaredMeasure(name, function, placed, getattr(module, "cost", _no_steps), on_request)


def _group(name: str, module: ModuleType) -> str:
    """The name of the measure: of its function, or of its module if that is called ``measure``."""
    function = name.partition(":")[2] or name
    return module.__name__.rpartition(".")[2] if function == "measure" else function


def _names(measure: DeclaredMeasure) -> list[str]:
    return [q.name + variable.removeprefix(q.variable) for q in measure.quantities for variable in q.variables]


def _check_unique(found: tuple[DeclaredMeasure, ...], kind: str, used: list[tuple[str, str]]) -> None:
    (text, number), *_ = Counter(text for _, text in used).most_common(1) or [("", 0)]
    if number > 1:
        owners = [owner for owner, each in used if each == text]
        raise InputError(f"measure: expected each {kind} once, got '{text}' from {' and '.join(owners)}; rename one")


def _no_steps(settings: Measure) -> int:
    return 0
