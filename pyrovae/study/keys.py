"""Keys of runs: what identifies a run, whatever study it is part of."""

import hashlib
import json
from collections.abc import Iterable
from typing import Any

from pyrovae import parts
from pyrovae.study.components import component_settings, takes_gamma
from pyrovae.study.settings import KINDS, Run

#: Part of every key, to be raised if equal settings come to mean another run.
KEY_VERSION = 1
#: Settings that are no part of a run's identity: how far it goes.
EXTENT = ("steps",)


def identity(run: Run) -> dict[str, Any]:
    """The settings that identify a run: those that its components take and that differ from their defaults.

    A setting that is added later, with a default that keeps today's behaviour, leaves them as they are. So do settings
    that no component takes, and the number of steps.

    Example:
        >>> identity(Run(beta=0.1, steps=500, network="mlp(depth=3)", prior="mixture", components=10))
        {'beta': 0.1, 'network.depth': 3, 'prior': 'mixture', 'prior.components': 10}
        >>> identity(Run(gamma=0.5)), identity(Run(gamma=0.5, model="gap"))
        ({}, {'gamma': 0.5, 'model': 'gap'})
    """
    found = _of_components(run)
    ignored = {*KINDS, *EXTENT} | (set() if run.gamma is None or takes_gamma(run) else {"gamma"})
    for name, field in Run.model_fields.items():
        value = run.training_set if name == "data_seed" else getattr(run, name)
        if name not in ignored and value != field.default:
            found[name] = value
    return dict(sorted(found.items()))


def key_of(run: Run) -> str:
    """The key of a run: a hash of its `identity`, and the name of its folder.

    Example:
        >>> key_of(Run(beta=1, depth=3)) == key_of(Run(network="mlp(depth=3)", steps=5))
        True
        >>> len(key_of(Run()))
        16
    """
    return _digest([KEY_VERSION, identity(run)])


def cohort_key(keys: Iterable[str]) -> str:
    """The key of runs that train together."""
    return _digest(sorted(keys))


def _of_components(run: Run) -> dict[str, Any]:
    """The components of a run and their settings, where they differ from the defaults."""
    found: dict[str, Any] = {}
    for kind in run.kinds:
        name = run.component(kind).name
        if name != Run.model_fields[kind].default:
            found[kind] = name
        declared = parts.settings_of(kind, name)
        chosen = component_settings(run, kind)
        found |= {f"{kind}.{key}": value for key, value in chosen.items() if value != declared[key].default}
    return found


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
