"""Which settings belong to which components of a run, read off the signatures of the components."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from functools import lru_cache
from inspect import signature
from typing import Any

from pyrovae import parts
from pyrovae.errors import InputError
from pyrovae.parts import Value
from pyrovae.study.settings import KINDS, Run


def component_settings(run: Run, kind: str) -> dict[str, Any]:
    """All settings of one component of a run: its own, else the run's, else their defaults.

    Raises:
        InputError: a value is of another type than the setting, or out of range.

    Example:
        >>> component_settings(Run(depth=3), "network")
        {'depth': 3, 'width': 512}
    """
    name, own = run.component(kind)
    chosen = {}
    for key, setting in parts.settings_of(kind, name).items():
        given = [settings[each] for settings, each in _places(run, kind, key, own) if each in settings]
        try:
            chosen[key] = setting.validated(given[0]) if given else setting.default
        except ValueError as error:
            raise InputError(f"{kind}.{key}: {error}") from None
    return chosen


def parameters_of(run: Run, kind: str) -> set[str]:
    """The names that a component of a run takes: where it is made and, if it is a program, where it is run."""
    return _parameters(parts.resolve(kind, run.component(kind).name), kind == "model")


def takes_gamma(run: Run) -> bool:
    """Whether γ can have a value of its own; programs of the user's own may name it."""
    return run.pair is not None or "gamma" in parameters_of(run, "model")


def check_settings(runs: Collection[Run]) -> None:
    """Raises InputError if a component setting of these runs is unknown, ambiguous, out of range, or used by no run."""
    unused = {key for run in runs for key in run.settings}
    for run in _distinct(runs):
        takers = _takers(run)
        for kind in run.kinds:
            name, own = run.component(kind)
            if unknown := own.keys() - parts.settings_of(kind, name).keys():
                valid = ", ".join(parts.settings_of(kind, name)) or "none"
                raise InputError(f"{kind}: '{name}' has no setting '{min(unknown)}'; valid: {valid}")
            component_settings(run, kind)
        for key in run.settings.keys() & takers.keys():
            if len(takers[key]) > 1:
                valid = ", ".join(f"{kind}.{key}" for kind in takers[key])
                raise InputError(f"{key}: ambiguous, because several components have such a setting; valid: {valid}")
        unused -= {*takers, *(f"{kind}.{key}" for key, kinds in takers.items() for kind in kinds)}
    if unused:
        known = sorted({*Run.model_fields, *(key for run in _distinct(runs) for key in _takers(run))})
        close = get_close_matches(min(unused), known, 1)
        meant = f"; did you mean '{close[0]}'" if close else ""
        raise InputError(
            f"unknown setting {min(unused)!r:.200}: no component of these runs has it{meant}; valid: {', '.join(known)}"
        )


def complete(run: Run, kinds: Iterable[str]) -> dict[str, Any]:
    """The settings of some components of a run, each under its bare name where no other component has it too."""
    takers = _takers(run)
    return {
        key if len(takers[key]) == 1 else f"{kind}.{key}": value
        for kind in kinds
        for key, value in component_settings(run, kind).items()
    }


def short_label(run: Run, kind: str) -> str:
    """A component of a run with those of its own settings that say more than its name does."""
    name, own = run.component(kind)
    plain = component_settings(run.model_copy(update={kind: name}), kind)
    mine = component_settings(run, kind)
    return parts.label(name, {key: mine[key] for key in own if mine[key] != plain[key]})


def bare(runs: Collection[Run], key: str) -> str:
    """The bare name of a setting such as ``network.depth``, where in no run several components have it."""
    name = key.rpartition(".")[2]
    return key if any(len(_takers(run).get(name, ())) > 1 for run in _distinct(runs)) else name


def converted(runs: Collection[Run], key: str, value: Value) -> Any:
    """A value of a component setting, which some of these runs use, in the type of the setting."""
    name = key.rpartition(".")[2]
    kind, run = next((kinds[0], run) for run in _distinct(runs) for kinds in [_takers(run).get(name)] if kinds)
    return parts.settings_of(kind, run.component(kind).name)[name].validated(value)


@lru_cache
def _parameters(component: Any, is_program: bool) -> set[str]:
    program = signature(component.forward).parameters if is_program and hasattr(component, "forward") else ()
    return {*signature(component).parameters, *program}


def _places(run: Run, kind: str, key: str, own: Mapping[str, Value]) -> list[tuple[Mapping[str, Value], str]]:
    """Where a setting may be given, the most specific first."""
    return [(own, key), (run.settings, f"{kind}.{key}"), (run.settings, key)]


def _takers(run: Run) -> dict[str, list[str]]:
    """By name of a setting, the kinds of those components of a run that have it."""
    takers: dict[str, list[str]] = {}
    for kind in run.kinds:
        for key in parts.settings_of(kind, run.component(kind).name):
            takers.setdefault(key, []).append(kind)
    return takers


def _distinct(runs: Iterable[Run]) -> list[Run]:
    """One run of each combination of components and their settings."""
    return list(
        {tuple(getattr(run, kind) for kind in KINDS) + tuple(run.settings.items()): run for run in runs}.values()
    )
