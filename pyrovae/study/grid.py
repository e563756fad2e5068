"""A study: the grid of its runs, the cohorts that train together, and its file."""

import difflib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib import import_module
from itertools import product
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from pydantic import Field

from pyrovae import parts
from pyrovae.errors import InputError
from pyrovae.study import files
from pyrovae.study.components import bare, check_settings, complete, converted, short_label
from pyrovae.study.keys import cohort_key, key_of
from pyrovae.study.settings import KINDS, Count, Frozen, Measure, Run

if TYPE_CHECKING:
    from pyrovae.store.results import Results

#: Settings in which the runs of one cohort may differ; all others are shared.
PER_RUN = ("beta", "target_rate", "gamma", "seed", "data_seed", "learning_rate", "warmup", "cycles")
#: The splits of every study, and those of one with validation images, in the order of results.
SPLITS = ("train", "test")
EVERY_SPLIT = (*SPLITS, "validation")
#: Settings that say which images are train and test, and what becomes of their pixels.
DATA_SETTINGS = (
    "data",
    "split",
    "train_ratio",
    "held_out",
    "train_images",
    "test_images",
    "validation_images",
    "images_per_class",
    "data_seed",
    "background",
    "pixels",
)
#: Axes that have another name in the results, where `split` is train and test.
DIMENSIONS = {"split": "data_split"}
#: Most runs of a study: more were hardly meant.
MAX_RUNS = 100_000


@dataclass(frozen=True)
class Cohort:
    """Runs that share data, shapes and steps, and train in lockstep.

    Example:
        >>> (cohort,) = Study(name="mine", beta=[0.1, 1, 10]).cohorts()
        >>> [len(half.runs) for half in cohort.halves()]
        [1, 2]
    """

    runs: tuple[Run, ...]

    @property
    def shared(self) -> Run:
        """A run that stands for what all share: the first."""
        return self.runs[0]

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The keys of the runs."""
        return tuple(map(key_of, self.runs))

    @property
    def key(self) -> str:
        """The key of the cohort: the same for the same runs."""
        return cohort_key(self.keys)

    def halves(self) -> list["Cohort"]:
        """The same runs in two cohorts."""
        middle = len(self.runs) // 2
        return [Cohort(self.runs[:middle]), Cohort(self.runs[middle:])]


class Study(Frozen):
    """A grid of runs and what is measured on them.

    Made from flat settings, those of `Run` and of components among them: a list makes a setting an axis of the grid.
    `beta` and `seed` are always axes; `target_rate`, where it is set, is one in place of `beta`.

    Args:
        data: images or vectors in memory, or the name or the path of a data set, as of `pyrovae.fit`.
        test: the test images, in the same form; without them, the setting ``split`` divides the data.
        labels, factors: classes and known factors of the items, as of `pyrovae.fit`.
        settings: all others, such as ``name``, which names the folder under runs/.

    Raises:
        InputError: a setting is out of range, an axis is empty or repeats a value, or data are not what was expected.

    Example:
        >>> study = Study(name="mine", beta=[0.1, 1], depth=[1, 3], width=256)
        >>> study.axes
        {'beta': (0.1, 1.0), 'seed': (0,), 'depth': (1, 3)}
        >>> len(study.runs()), len(study.cohorts())
        (4, 2)
    """

    name: str = Field(
        "study", max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the folder under runs/"
    )
    description: str = ""
    base: Run
    axes: dict[str, tuple[Any, ...]]
    measure: Measure = Measure()
    margin: float = Field(
        0.01, ge=0, le=1, description="differences below this share of a mean have no meaning in verdicts"
    )
    checkpoint_every: Count = Field(1000, ge=1, description="steps between checkpoints: the most that a kill can lose")

    def __init__(
        self, data: Any = None, /, *, test: Any = None, labels: Any = None, factors: Any = None, **settings: Any
    ) -> None:
        if any(each is not None for each in (data, test, labels, factors)):
            if "data" in settings:
                raise InputError("data: expected data once, got them in memory and by the setting 'data'")
            # Imports go downwards; data are above their names.
            memory = import_module("pyrovae.data.memory")
            settings = memory.settings_of(data, test, labels, factors) | settings
            settings.setdefault("batch_size", memory.batch_size(settings, Run().batch_size))
        super().__init__(**(settings if "base" in settings else self._flat(settings)))
        if data is not None:
            check_settings(self.runs())

    @classmethod
    def _flat(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """The fields of the study with flat settings."""
        own = {key: settings.pop(key) for key in _OWN & settings.keys()}
        measure = _section("measure", own.pop("measure", {}))
        given = {key: plain(settings[key]) for key in sorted(settings, key=_order)}
        for key, value in given.items():
            if shape := list(getattr(value, "shape", ())):
                raise InputError(
                    f"{key}: expected a value, or a list of values for an axis, got an array of shape {shape}; put "
                    "what differs between items, such as an offset, into the columns of x"
                )
        if isinstance(given.get("steps"), list | tuple):
            raise InputError(
                "steps: expected one number, got an axis: learning curves show the course of training, and a finished "
                "study continues when it is run again with more steps"
            )
        if isinstance(given.get("data_seed"), list | tuple) and "seed" in given["data_seed"]:
            raise InputError("data_seed: expected numbers along an axis, or 'seed' alone, which is one for every seed")
        axes = {key: (getattr(Run(), key),) for key in (_swept(given), "seed")}
        axes |= {
            key: _axis(key, value) for key, value in given.items() if key in axes or isinstance(value, list | tuple)
        }
        if (runs := prod(map(len, axes.values()))) > MAX_RUNS:
            raise InputError(f"expected a grid of at most {MAX_RUNS:,} runs, got {runs:,}")
        base = Run(**given | {key: values[0] for key, values in axes.items()})
        return {"base": base, "axes": axes, "measure": measure, **own}

    @property
    def swept(self) -> str:
        """The axis along which the rate changes: β, or target rates in its place."""
        return "beta" if "beta" in self.axes else "target_rate"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of the images."""
        apart = any(each is not None for each in self.axes.get("validation_images", [self.base.validation_images]))
        return EVERY_SPLIT if apart else SPLITS

    def __repr__(self) -> str:
        axes = "; ".join(f"{axis} {', '.join(map(str, values))}" for axis, values in self.axes.items())
        return f"Study '{self.name}' of {prod(self.shape()):,} runs: {axes}\n  {self.base!r}"

    __str__ = __repr__

    def run(self, out: str | Path | None = None, **options: Any) -> "Results":
        """Runs the study in a folder, ``runs/NAME`` by default, and returns its results: as `pyrovae.run`."""
        return import_module("pyrovae.runner.run").run(self, out, **options)

    @classmethod
    def load(cls, source: str | Path, *, trust: Collection[str] | None = (), **overrides: Any) -> Self:
        """Reads a study by the name of one that ships, or from a YAML file; ``overrides`` as in `replace`.

        Args:
            trust: modules whose code may run, as ``module:Class`` in the file asks for; None for readers who run none.

        Raises:
            InputError: there is no such study, the file is not a valid one, or it names code that is not trusted.
        """
        text, where = files.read(source)
        try:
            return cls._of_text(text, Path(source).stem, trust, overrides)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    @classmethod
    def _of_text(cls, text: str, name: str, trust: Collection[str] | None, overrides: Mapping[str, Any]) -> Self:
        try:
            settings = files.parse_yaml(text)
        except ValueError as error:
            raise InputError(f"expected YAML, got text that does not parse: {error}") from error
        if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
            raise InputError(f"expected 'setting: value' lines, got {type(settings).__name__}")
        study = cls(**_merged({"name": name} | settings, overrides))
        if trust is not None:
            check_trust(study.settings(), trust)
        return study

    @classmethod
    @lru_cache(maxsize=64)
    def of_yaml(cls, text: str) -> Self:
        """The study whose `to_yaml` a text is."""
        return cls._of_text(text, "study", None, {})

    def replace(self, **overrides: Any) -> Self:
        """The same study with other settings; a list makes an axis, a single value ends one.

        Example:
            >>> Study.load("quick").replace(depth=1, beta=[0.5, 1]).axes
            {'beta': (0.5, 1.0), 'seed': (0, 1, 2)}
        """
        return type(self)(**_merged(self.settings(), overrides))

    def resolved(self) -> Self:
        """The study with all settings of its components written out, under their shortest names.

        Settings of components along an axis stay with the values of the axis, such as ``mixture(components=10)``.

        Raises:
            InputError: a component setting is unknown, ambiguous, out of range, or used by no run.

        Example:
            >>> study = Study(name="mine", prior=["vamp", "mixture(components=5)"], network="mlp(depth=2)")
            >>> study.resolved().axes["prior"], study.resolved().base.settings["depth"]
            (('vamp', 'mixture(components=5)'), 2)
        """
        runs = self.runs()
        check_settings(runs)
        names = {key: bare(runs, key) for key in (*self.axes, *self.base.settings)}
        single = [kind for kind in self.base.kinds if kind not in self.axes]
        self._check_given_once(single)
        settings = complete(self.base, single)
        settings = {names[key]: converted(runs, key, value) for key, value in self.base.settings.items()} | settings
        plain = {kind: self.base.component(kind).name for kind in single}
        axes = {names[key]: [self._short(runs, key, value) for value in values] for key, values in self.axes.items()}
        own = {key: getattr(self, key) for key in ("name", "description", "margin", "checkpoint_every")}
        fixed = {key: getattr(self.base, key) for key in Run.model_fields}
        return type(self)(**own, measure=self.measure.model_dump(), **fixed | plain | settings | axes)

    def settings(self) -> dict[str, Any]:
        """All settings, flat, as `of` takes them and as the study file shows them."""
        own = {key: getattr(self, key) for key in ("name", "description", "margin", "checkpoint_every")}
        axes = {key: list(values) for key, values in self.axes.items()}
        return own | self.base.model_dump() | axes | {"measure": self.measure.model_dump(mode="json")}

    def to_yaml(self) -> str:
        """The study file."""
        return files.to_yaml(self.settings())

    def difference(self, before: str) -> str:
        """The lines in which another study file differs from that of this study, on one line."""
        lines = difflib.ndiff(before[: files.MAX_CHARACTERS].splitlines(), self.to_yaml().splitlines())
        return "; ".join(line for line in lines if line[0] in "+-")

    def runs(self) -> list[Run]:
        """All runs of the grid."""
        return [run for cohort in self.cohorts() for run in cohort.runs]

    def cohorts(self) -> list[Cohort]:
        """The runs by what they share: one cohort for every combination of the axes that are not `PER_RUN`."""
        inner = [key for key in self.axes if key in PER_RUN]
        outer = [key for key in self.axes if key not in PER_RUN]
        return [
            Cohort(tuple(self.run_at(shared | each) for each in self._combinations(inner)))
            for shared in self._combinations(outer)
        ]

    def coordinates(self, run: Run) -> dict[str, Any]:
        """Where in the results a run stands."""
        return {DIMENSIONS.get(key, key): getattr(run, key) for key in self.axes}

    def position(self, run: Run) -> tuple[int, ...]:
        """Where in the grid a run stands, by numbers.

        Example:
            >>> study = Study(name="mine", beta=[0.1, 1], depth=[1, 3])
            >>> study.shape(), study.position(study.runs()[-1])
            ((2, 1, 2), (1, 0, 1))
        """
        return tuple(values.index(getattr(run, key)) for key, values in self.axes.items())

    def shape(self) -> tuple[int, ...]:
        """Of the grid."""
        return tuple(map(len, self.axes.values()))

    def dimensions(self) -> dict[str, list[Any]]:
        """The axes of the grid by their names in the results."""
        return {DIMENSIONS.get(key, key): list(values) for key, values in self.axes.items()}

    def changes(self) -> dict[str, Any]:
        """The settings, as the command names them, in which it differs from the study of its name that ships."""
        if self.name not in files.shipped_names():
            return {}
        mine, shipped = (each._options() for each in (self, Study.load(self.name)))
        return {key: mine.get(key) for key in mine | shipped if mine.get(key) != shipped.get(key)}

    def _options(self) -> dict[str, Any]:
        """All settings, as options of the command name them."""
        settings = self.resolved().settings()
        measure = {f"measure.{key}": value for key, value in settings.pop("measure").items()}
        return {key: value for key, value in settings.items() if key not in ("name", "description")} | measure

    def about(self) -> str:
        """The description and, if it is that of the study of its name that ships, what is changed in this one.

        Example:
            >>> print(Study.load("quick", depth=1, steps=100).about())  # doctest: +ELLIPSIS
            The paper's question ... Changed here: steps = 100, depth = 1.
        """
        if self.name not in files.shipped_names() or self.description != Study.load(self.name).description:
            return self.description
        changed = {key: value for key, value in self.changes().items() if not key.startswith("measure.")}
        values = ", ".join(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in changed.items())
        return f"{self.description} Changed here: {values}." if changed else self.description

    def _combinations(self, axes: list[str]) -> Iterator[dict[str, Any]]:
        for values in product(*(self.axes[key] for key in axes)):
            yield dict(zip(axes, values, strict=True))

    def run_at(self, cell: Mapping[str, Any]) -> Run:
        """The run with these values along the axes."""
        run = self.base.model_copy(update=dict(cell))
        return run if run.data_seed == run.training_set else run.model_copy(update={"data_seed": run.training_set})

    def _check_given_once(self, kinds: list[str]) -> None:
        """Raises InputError if a component that all runs share has a setting of its own that the study sets, too."""
        for kind in kinds:
            for key in self.base.component(kind).settings:
                if twice := {key, f"{kind}.{key}"} & (self.base.settings.keys() | self.axes.keys()):
                    raise InputError(f"{twice.pop()}: set twice, by the study and by '{getattr(self.base, kind)}'")

    def _short(self, runs: list[Run], key: str, value: Any) -> Any:
        """A value of an axis: a setting in its type, a component without settings that say no more than its name."""
        if key in KINDS:
            return short_label(self.run_at({key: value}), key)
        return value if key in Run.model_fields else converted(runs, key, value)


def shipped() -> dict[str, str]:
    """The studies that ship, name → description."""
    return {name: Study.load(name).description for name in files.shipped_names()}


def check_trust(settings: Mapping[str, Any], trust: Collection[str]) -> None:
    """Raises InputError if settings name code of a module that is not trusted."""
    measures = ("measure", settings.get("measure", {}).get("also", ()))
    for kind, values in [*((kind, settings.get(kind)) for kind in KINDS), measures]:
        for value in _values(values):
            module = parts.user_module(parts.parse(value).name)
            if module and not any(f"{module}.".startswith(f"{each}.") for each in trust):
                raise InputError(
                    f"{kind}: '{value}' would run code of the module {module}, which is not trusted; "
                    f"if you trust it, add --trust {module} (from Python trust=['{module}'])"
                )


_OWN = Study.model_fields.keys() - {"base", "axes"}


def _values(value: Any) -> list[str]:
    return [each for each in (value if isinstance(value, list | tuple) else [value]) if each is not None]


def _swept(given: Mapping[str, Any]) -> str:
    """The axis of β, or that of target rates in its place."""
    if given.get("target_rate") is None:
        return "beta"
    if isinstance(given.get("beta"), list | tuple):
        raise InputError(
            "beta: expected one value, such as beta=1, from which training starts towards each target_rate, got "
            f"{given['beta']!s:.200}"
        )
    return "target_rate"


def _order(key: str) -> tuple[int, int, str]:
    """Settings in which the runs of a cohort differ come first, settings of components last."""
    fields = list(Run.model_fields)
    return (
        PER_RUN.index(key) if key in PER_RUN else len(PER_RUN),
        fields.index(key) if key in fields else len(fields),
        key,
    )


def plain(value: Any) -> Any:
    """Arrays of up to one dimension as plain numbers, those of float32 as the shortest number that they stand for.

    Example:
        >>> plain(np.array([0.1, 3.0], np.float32)), plain([np.int64(3), "a"])
        ([0.1, 3.0], [3, 'a'])
    """
    if isinstance(value, list | tuple):
        return type(value)(map(plain, value))
    if getattr(value, "ndim", 2) > 1:
        return value
    array = np.asarray(value)
    short = array.dtype in (np.float16, np.float32)
    numbers = [float(str(each)) for each in array.ravel()] if short else array.ravel().tolist()
    return numbers if array.ndim else numbers[0]


def values_of(value: Any) -> list[Any]:
    """The values that a user gives along an axis: one, a list or an array, as plain numbers."""
    value = plain(value)
    return list(value) if isinstance(value, list | tuple) else [value]


def _axis(key: str, value: Any) -> tuple[Any, ...]:
    """The validated values of one axis."""
    values = values_of(value)
    if not values:
        raise InputError(f"{key}: expected at least one value, got an empty list: the grid would have no runs")
    if None in values:
        raise InputError(f"{key}: expected values along an axis, got null: write the number out")
    valid = tuple(getattr(Run(**{key: each}), key) for each in values)
    if len(set(valid)) < len(valid):
        raise InputError(f"{key}: expected values that differ, got {list(valid)!s:.200}")
    return valid


def _section(name: str, values: Any) -> Measure:
    if not isinstance(values, dict):
        raise InputError(f"{name}: expected settings such as 'images: 2048', got {values!r:.200}")
    try:
        return Measure(**values)
    except InputError as error:
        unknown, problem = "unknown setting '", str(error)
        place = f"{unknown}{name}." if problem.startswith(unknown) else f"{name}."
        raise InputError(place + problem.removeprefix(unknown)) from None


def _merged(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with overrides; 'measure.images' is one of the section 'measure', 'width' may be one of a component."""
    merged = dict(settings)
    for kind in (merged.keys() & KINDS) - overrides.keys():
        if isinstance(merged[kind], str | dict):
            name, own = Run(**{kind: merged[kind]}).component(kind)
            kept = {key: value for key, value in own.items() if not {key, f"{kind}.{key}"} & overrides.keys()}
            merged[kind] = parts.label(name, kept)
    for key in merged.keys() - Run.model_fields.keys() - overrides.keys():
        kind, dot, name = key.rpartition(".")
        if name in overrides if dot else any(f"{each}.{key}" in overrides for each in KINDS):
            del merged[key]  # the same setting by its other name
    for key, value in overrides.items():
        section, _, inner = key.partition(".")
        if section == "measure" and inner:
            before = merged.get(section) or {}
            if not isinstance(before, dict):
                raise InputError(f"{section}: expected settings such as 'images: 2048', got {before!r:.200}")
            merged[section] = before | {inner: value}
        else:
            merged[key] = value
    return merged
