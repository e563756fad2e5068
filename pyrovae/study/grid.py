"""A study: a grid of runs, and what is measured on them. Frozen, validated, read from and written to YAML."""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from itertools import product
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pyrovae.errors import InputError

M = TypeVar("M", bound=BaseModel)

#: Settings in which the runs of one cohort may differ; all others are shared.
PER_RUN = ("beta", "gamma", "seed")
#: Settings that are axes of every grid.
ALWAYS_AXES = ("beta", "seed")
#: Settings that name a part of a run, which may be its user's own.
PARTS = ("data", "split", "pair", "model", "prior", "likelihood", "guide", "network")
#: How such a part is named, as in ``module:Class``.
OWN_PART = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")
#: Settings that say which images are train and test, and what becomes of their pixels.
DATA_SETTINGS = (
    "data",
    "split",
    "train_ratio",
    "held_out",
    "train_images",
    "test_images",
    "images_per_class",
    "pixels",
)
#: Axes that go by another name in the results, where `split` is train and test.
DIMENSIONS = {"split": "data_split"}
#: Most runs of a study, and most bytes of a study file: what is beyond was hardly meant.
MOST_RUNS, MOST_BYTES = 100_000, 1_000_000
#: What networks compute in while they are trained.
Precision = Literal["float32", "tf32", "bfloat16"]
#: A number of things, of which there can be no more than this anywhere.
Count = Annotated[int, Field(le=10**9)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        if isinstance(value, bool | bytes):
            raise ValueError(
                f"{'a truth value is' if isinstance(value, bool) else 'binary data are'} not expected here"
            )
        if isinstance(value, str) and not " ".join(value.split()).isprintable():
            raise ValueError("expected text that can be shown")
        return value


class Run(_Frozen):
    """The settings of one run: one pair trained at one β with one seed.

    Example:
        >>> Run(beta=0.1, depth=3).width
        512
    """

    data: str = Field("tetrominoes", description="data set")
    split: str = Field("random", description="how the data set is divided into train and test")
    train_ratio: float | None = Field(None, gt=0, lt=1, description="share that is train, for splits that let it vary")
    held_out: str | None = Field(None, description="classes that are test, as in 9 or 4,9, for the split held_out")
    train_images: Count | None = Field(None, ge=2, description="training images to use; null: all")
    test_images: Count | None = Field(None, ge=2, description="test images to use; null: all")
    images_per_class: Count | None = Field(None, ge=1, description="training images to use of each class; null: all")
    pixels: str = Field("continuous", description="continuous, or binarised: static (once), dynamic (at each step)")
    pair: str | None = Field(None, description="model and guide as one part of yours; null: made of the parts below")
    model: str = Field("vae", description="p(x, z)")
    prior: str = Field("standard_normal", description="p(z)")
    components: Count = Field(
        100, ge=1, description="components of a mixture prior, pseudo-inputs, or subsampled encodings"
    )
    refresh: Count = Field(
        50, ge=1, description="steps between renewals of the encodings behind an aggregate posterior"
    )
    likelihood: str = Field("bernoulli", description="p(x|z)")
    noise_scale: float = Field(1.0, ge=1e-15, le=1e15, description="σ of the gaussian likelihood, in units of x")
    guide: str = Field("mean_field", description="q(z|x)")
    latent_size: Count = Field(10, ge=1, description="dimensions of z")
    network: str = Field("mlp", description="encoder and decoder")
    depth: Count = Field(
        1, ge=1, le=1000, description="hidden layers of encoder and of decoder, where the network is mlp"
    )
    width: Count = Field(512, ge=1, description="units of each hidden layer, where the network is mlp")
    beta: float = Field(1.0, gt=0, description="weight of the rate")
    gamma: float | None = Field(None, ge=0, le=1e30, description="weight of G, where the model is gap; null: β")
    warmup: float = Field(0.0, ge=0, le=1, description="share of a cycle over which β rises to its value; 0: constant")
    cycles: Count = Field(1, ge=1, description="times that the rise of β begins anew")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of initial weights, batch order and noise")
    steps: Count = Field(1000, ge=1, description="training steps")
    batch_size: Count = Field(128, ge=1, description="images in a batch")
    learning_rate: float = Field(1e-3, gt=0, description="step size of Adam")
    precision: Precision = Field(
        "float32", description="of the networks while they train: float32, tf32 (on a GPU) or bfloat16"
    )

    def weights(self) -> dict[str, float]:
        """The weights of the loss, by the names by which programs take them."""
        return {"beta": self.beta, "gamma": self.beta if self.gamma is None else self.gamma}

    def beta_share(self, step: int) -> float:
        """Share of β that is in force at a step: 1 when it is constant, and at the last step always.

        min(1, φ / warmup) with φ in (0, 1] the part of the present cycle that is over: linear warm-up (Bowman et al.
        2016) with one cycle, cyclical annealing (Fu et al. 2019) with several.

        Example:
            >>> [Run(steps=8, warmup=0.5, cycles=2).beta_share(step) for step in range(8)]
            [0.5, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0, 1.0]
        """
        phase = (step * self.cycles % self.steps + self.cycles) / self.steps
        return min(1.0, phase / self.warmup) if self.warmup else 1.0

    @field_validator("held_out", mode="before")
    @classmethod
    def _one_class(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value

    @field_validator("beta")
    @classmethod
    def _representable(cls, beta: float) -> float:
        if not 1e-30 <= beta <= 1e30:
            raise ValueError("expected a weight between 1e-30 and 1e30, as float32 can hold")
        return beta


class Measure(_Frozen):
    """What is measured, and on how much of the data."""

    images: Count = Field(2048, ge=2, description="images of each split on which D and R are measured")
    samples: Count = Field(1, ge=1, description="draws of z an image")
    outer: Count = Field(
        1024, ge=2, description="images of each split over which I, G and rates under q(z) are averaged"
    )
    likelihood_images: Count = Field(128, ge=2, description="test images on which log p(x) is bounded")
    particles: Count = Field(256, ge=2, description="draws of z an image behind the importance-weighted bound")
    temperatures: Count = Field(0, ge=0, description="steps of annealing from p(z) to p(z|x), a second bound; 0: none")
    chains: Count = Field(8, ge=2, description="chains of annealing an image")
    reconstructions: Count = Field(256, ge=2, description="images of each split that are reconstructed")
    probe: Count = Field(256, ge=2, description="images of each split behind the learning curves")
    points: Count = Field(50, ge=2, le=10_000, description="points of the learning curves, spaced logarithmically")

    @property
    def per_image(self) -> int:
        """Images of a split of which some number is kept for each."""
        return max(self.images, self.likelihood_images, self.reconstructions)


class Cohort(BaseModel):
    """The runs that share data, shapes and steps, and are trained in lockstep.

    Attributes:
        index: its number in the study.
        runs: its runs.
        cut: which half of which half these are, "0" or "1" for each cut, where all together did not fit into memory.
    """

    model_config = ConfigDict(frozen=True)
    index: int
    runs: tuple[Run, ...]
    cut: str = ""

    @property
    def name(self) -> str:
        """Tells it from all others of its study, and their halves.

        Example:
            >>> cohort = Study.of(name="mine", beta=[0.1, 1, 10]).cohorts()[0]
            >>> cohort.name, [(half.name, len(half.runs)) for half in cohort.halves()]
            ('000', [('000-0', 1), ('000-1', 2)])
        """
        return "-".join([f"{self.index:03d}", *self.cut])

    def halves(self) -> list["Cohort"]:
        """The same runs in two cohorts."""
        middle = len(self.runs) // 2
        return [
            self.model_copy(update={"runs": runs, "cut": self.cut + side})
            for side, runs in (("0", self.runs[:middle]), ("1", self.runs[middle:]))
        ]

    @property
    def shared(self) -> Run:
        """The settings that the runs share, read off the first of them."""
        return self.runs[0]

    def record(self) -> list[dict[str, Any]]:
        """The runs as a checkpoint remembers them."""
        return [run.model_dump(mode="json") for run in self.runs]

    def check(self, recorded: Any, file: Path) -> None:
        """Raises InputError if a checkpoint remembers other runs than these."""
        if recorded != self.record():
            raise InputError(
                f"{file}: expected a checkpoint of this cohort, got one of runs with other settings; "
                "choose another --out, or delete it to train the cohort anew"
            )


class Study(_Frozen):
    """A grid of runs and what is measured on them.

    In a study file a list makes a setting an axis of the grid. `beta` and `seed` are always axes.

    Example:
        >>> study = Study.of(name="mine", beta=[0.1, 1], depth=[1, 3], width=256)
        >>> study.axes
        {'beta': (0.1, 1.0), 'seed': (0,), 'depth': (1, 3)}
        >>> len(study.runs()), len(study.cohorts())
        (4, 2)
    """

    name: str = Field(
        max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="names the folder under runs/"
    )
    description: str = ""
    base: Run
    axes: dict[str, tuple[Any, ...]]
    measure: Measure = Measure()
    checkpoint_every: Count = Field(1000, ge=1, description="steps between checkpoints: the most that a kill can lose")

    @classmethod
    def of(cls, **settings: Any) -> Self:
        """Makes a study from flat settings, those of `Run` among them; a list is an axis of the grid.

        Raises:
            InputError: a setting is unknown, out of range, or an axis is empty or repeats a value.
        """
        _refuse_unknown(settings, [*Run.model_fields, *_own_settings()], "setting")
        axes = {}
        fixed = {}
        for key in sorted(Run.model_fields.keys() & settings, key=_axis_order):
            value = settings[key]
            if isinstance(value, list | tuple) or key in ALWAYS_AXES:
                axes[key] = _axis(key, value)
            else:
                fixed[key] = value
        axes = {key: (getattr(Run(), key),) for key in ALWAYS_AXES} | axes
        base = _validated(Run, fixed | {key: values[0] for key, values in axes.items()})
        if (runs := prod(map(len, axes.values()))) > MOST_RUNS:
            raise InputError(f"expected a grid of at most {MOST_RUNS:,} runs, got {runs:,}")
        measure = _validated(Measure, settings.get("measure", {}), "measure.")
        own = {key: settings[key] for key in _own_settings() & settings.keys() - {"measure"}}
        return _validated(cls, {"base": base, "axes": axes, "measure": measure, **own})

    @classmethod
    def load(cls, source: str | Path, *, trust: Collection[str] | None = (), **overrides: Any) -> Self:
        """Reads a study by the name of one that ships, or from a YAML file; ``overrides`` as in `replace`.

        Args:
            trust: modules whose code may run, as ``module:Class`` in the file asks for; None asks no questions, for
                readers who run none of it.

        Raises:
            InputError: there is no such study, the file is not a valid one, or it names code that is not trusted.
        """
        text, where = _read(source)
        try:
            settings = parsed(text)
        except ValueError as error:
            raise InputError(f"{where}: expected YAML, got text that does not parse: {error}") from error
        if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
            raise InputError(f"{where}: expected 'setting: value' lines, got {type(settings).__name__}")
        if "name" not in settings:
            settings["name"] = Path(source).stem
        try:
            study = cls.of(**_merged(settings, overrides))
            if trust is not None:
                # What was validated, because that is what will be used.
                check_trust(study.settings(), trust)
            return study
        except InputError as error:
            raise InputError(f"{where}: {error}") from None

    def replace(self, **overrides: Any) -> Self:
        """The same study with other settings; a list makes an axis, a single value ends one.

        Example:
            >>> Study.load("quick").replace(depth=1, beta=[0.5, 1]).axes
            {'beta': (0.5, 1.0), 'seed': (0, 1, 2)}
        """
        return self.of(**_merged(self.settings(), overrides))

    def settings(self) -> dict[str, Any]:
        """All settings, flat and resolved, as `of` takes them and as the study file shows them."""
        own = {key: getattr(self, key) for key in ("name", "description", "checkpoint_every")}
        axes = {key: list(values) for key, values in self.axes.items()}
        return own | self.base.model_dump() | axes | {"measure": self.measure.model_dump()}

    def to_yaml(self) -> str:
        """The study file."""
        return yaml.safe_dump(self.settings(), sort_keys=False, allow_unicode=True)

    def difference(self, before: str) -> str:
        """The lines in which another study file differs from that of this study, on one line."""
        lines = difflib.ndiff(before[:MOST_BYTES].splitlines(), self.to_yaml().splitlines())
        return "; ".join(line for line in lines if line[0] in "+-")

    def runs(self) -> list[Run]:
        """All runs of the grid."""
        return [run for cohort in self.cohorts() for run in cohort.runs]

    def cohorts(self) -> list[Cohort]:
        """The runs by what they share: one cohort for every combination of the axes other than β and seed."""
        inner = [key for key in self.axes if key in PER_RUN]
        outer = [key for key in self.axes if key not in PER_RUN]
        return [
            Cohort(index=index, runs=tuple(self._run(shared | each) for each in self._combinations(inner)))
            for index, shared in enumerate(self._combinations(outer))
        ]

    def coordinates(self, run: Run) -> dict[str, Any]:
        """Where in the results a run stands."""
        return {DIMENSIONS.get(key, key): getattr(run, key) for key in self.axes}

    def position(self, run: Run) -> tuple[int, ...]:
        """Where in the grid a run stands, by numbers.

        Example:
            >>> study = Study.of(name="mine", beta=[0.1, 1], depth=[1, 3])
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

    def _combinations(self, axes: list[str]) -> Iterator[dict[str, Any]]:
        for values in product(*(self.axes[key] for key in axes)):
            yield dict(zip(axes, values, strict=True))

    def _run(self, cell: Mapping[str, Any]) -> Run:
        return self.base.model_copy(update=dict(cell))


def parsed(text: str) -> Any:
    """What a text in YAML says: plain values, with a key once and without references, which could grow beyond measure.

    Raises:
        ValueError: it says nothing of the kind.

    Example:
        >>> parsed("beta: [1e-3, 1]")
        {'beta': [0.001, 1]}
    """
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())) from error
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("a reference (*) is not expected")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        if twice := [key for key, times in keys.items() if times > 1]:
            raise ValueError(f"'{twice[0]}' comes twice")
        return super().construct_mapping(node, deep)


# YAML 1.1 takes 1e3 for a text, because it lacks a point.
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?\d+[eE][-+]?\d+$"), list("+-0123456789"))


def shipped() -> dict[str, str]:
    """The studies that ship, name → description."""
    files = resources.files("pyrovae.study") / "shipped"
    names = sorted(file.name.removesuffix(".yaml") for file in files.iterdir() if file.name.endswith(".yaml"))
    return {name: Study.load(name).description for name in names}


def check_trust(settings: Mapping[str, Any], trust: Collection[str]) -> None:
    """Raises InputError if settings name code of a module that is not trusted."""
    for setting in PARTS:
        value = settings.get(setting)
        for name in value if isinstance(value, list | tuple) else [value]:
            match = OWN_PART.fullmatch(name) if isinstance(name, str) else None
            if match and not any(f"{match[1]}.".startswith(f"{module}.") for module in trust):
                raise InputError(
                    f"{setting}: '{name}' would run code of the module {match[1]}, which is not trusted; "
                    f"if you trust it, add --trust {match[1]} (from Python trust=['{match[1]}'])"
                )


def _own_settings() -> set[str]:
    return Study.model_fields.keys() - {"base", "axes"}


def _axis_order(key: str) -> tuple[int, int]:
    return (PER_RUN.index(key) if key in PER_RUN else len(PER_RUN), list(Run.model_fields).index(key))


def _axis(key: str, value: Any) -> tuple[Any, ...]:
    """The validated values of one axis."""
    values = list(value) if isinstance(value, list | tuple) else [value]
    if not values:
        raise InputError(f"{key}: expected at least one value, got an empty list: the grid would have no runs")
    valid = tuple(getattr(_validated(Run, {key: each}), key) for each in values)
    if None in valid:
        raise InputError(f"{key}: expected values along an axis, got null: write the number out")
    if len(set(valid)) < len(valid):
        raise InputError(f"{key}: expected values that differ, got {list(valid)}")
    return valid


def _validated(model: type[M], values: Any, prefix: str = "") -> M:
    """Validates, and tells the first mistake in one line."""
    if not isinstance(values, dict):
        raise InputError(f"{prefix.rstrip('.') or 'study'}: expected settings with their values, got {values!r:.200}")
    _refuse_unknown(values, list(model.model_fields), "setting", prefix)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = prefix + ".".join(map(str, first["loc"]))
        problem = first["msg"].removeprefix("Value error, ")
        raise InputError(f"{place}: {problem[0].lower()}{problem[1:]}, got {first['input']!r:.200}") from None


def _refuse_unknown(given: Mapping[str, Any], valid: list[str], kind: str, prefix: str = "") -> None:
    for key in given:
        if key not in valid:
            raise InputError(f"unknown {kind} {f'{prefix}{key}'!r:.200}; valid: {', '.join(sorted(valid))}")


def _merged(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with overrides laid over them; 'measure.images' reaches into a section."""
    merged = dict(settings)
    for key, value in overrides.items():
        section, dot, inner = key.partition(".")
        if dot:
            if section != "measure":
                raise InputError(f"unknown section '{section}' in '{key}'; valid: measure")
            before = merged.get(section) or {}
            if not isinstance(before, dict):
                raise InputError(f"{section}: expected settings such as 'images: 2048', got {before!r}")
            merged[section] = before | {inner: value}
        else:
            merged[key] = value
    return merged


def _read(source: str | Path) -> tuple[str, str]:
    """Text of a study, and what to call it in a message."""
    path = Path(source)
    if path.suffix in (".yaml", ".yml") or path.parent != Path("."):
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: expected a study file, got something else")
        try:
            with path.open(encoding="utf-8") as opened:
                text = opened.read(MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: expected a study file, but it cannot be read: {error}") from error
        if len(text) > MOST_BYTES:
            raise InputError(f"{path}: expected a study file, got more than {MOST_BYTES:,} characters")
        return text, str(path)
    folder = resources.files("pyrovae.study") / "shipped"
    file = folder / f"{source}.yaml"
    if not file.is_file():
        names = sorted(each.name.removesuffix(".yaml") for each in folder.iterdir())
        raise InputError(f"unknown study '{source}'; valid: {', '.join(names)}, or the path of a .yaml file")
    return file.read_text(encoding="utf-8"), f"study '{source}'"
