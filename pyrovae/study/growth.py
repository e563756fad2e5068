"""What a study may change in a folder that holds it already: it may grow, or be narrowed to a part of it."""

from typing import Any

from pyrovae.study.grid import Study

#: Settings that change no run: names, what is measured and decided, how often a checkpoint is written, how far runs go.
FREE = ("name", "description", "measure", "margin", "checkpoint_every", "steps")
#: Settings of which a study may have other values than before.
VARIED = ("beta", "gamma", "seed", "data_seed")


def conflicts(before: Study, now: Study) -> list[str]:
    """The settings in which no run of a study can be one of an earlier study, as text.

    Example:
        >>> before = Study(name="mine", beta=[0.1, 1], width=64)
        >>> conflicts(before, before.replace(beta=[0.1, 1, 4], steps=5000, depth=[1, 3]))
        []
        >>> conflicts(before, before.replace(width=128))
        ['width: 64 before, 128 now']
    """
    old, new = before.settings(), now.settings()
    keys = [key for key in old if key in new and key not in (*FREE, *VARIED)]
    return [
        f"{key}: {_text(old[key])} before, {_text(new[key])} now"
        for key in keys
        if not set(_values(old[key])) & set(_values(new[key]))
    ]


def _values(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    return ", ".join(map(str, _values(value)))
