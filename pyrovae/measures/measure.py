"""Measures: the numbers that one declares, the trained run that it takes, and the result that it returns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, get_args

from torch import Tensor

from pyrovae.data import Dataset
from pyrovae.errors import InputError
from pyrovae.estimators import Kind
from pyrovae.measures.encodings import Encodings, encode_all
from pyrovae.programs.pair import Pair
from pyrovae.programs.terms import Terms
from pyrovae.study import Measure

if TYPE_CHECKING:
    import xarray as xr

T = TypeVar("T")
#: Unit of most numbers.
NATS = "nats per image"
#: Dimensions of numbers, which are stored together; values with other dimensions are pictures, loaded on demand.
NUMBER_DIMS = (), ("split",), ("level", "split")
PER_IMAGE_DIMS = ("split", "image")
#: Groups of the results that hold no measure's numbers.
RESERVED_GROUPS = ("images", "runs", "curves", "theory", "numbers", "evaluations")


@dataclass(frozen=True)
class Caveat:
    """A warning that tables show next to a number.

    Attributes:
        symbol: marks the number.
        text: explains the symbol.
        holds: the group of the number and the group ``runs`` of the results → where the warning applies.
    """

    symbol: str
    text: str
    holds: Callable[["xr.Dataset", "xr.Dataset"], "xr.DataArray"]


#: Of numbers that contain D.
CROSS_ENTROPY = Caveat(
    "‡",
    "from a cross-entropy, because pixels are grey, and so no log-probability",
    lambda group, runs: runs["distortion_kind"] == "cross-entropy",
)


@dataclass(frozen=True)
class Quantity:
    """A number, a value per image, a picture or a curve that a measure returns.

    Attributes:
        name: keyword of `MeasureResult`, and variable in the results unless ``variable`` says otherwise.
        long_name: what it is, for the results and the glossary.
        unit: of its values.
        kind: how its expectation relates to the quantity; None for a plain number. Estimates that are neither exact nor
            plain have a standard error, ``NAME_se``.
        dims: ``()`` for one number, ``("split",)`` for one each on train and test, ``("split", "image")`` for a value
            per image; anything else is a picture or a curve.
        group: group in the results; the measure's name if empty.
        variable: its name in the group; ``name`` if empty.
        per_image: whether the values per image behind a number are kept in the group ``images``.
        heading: of its column in the measure's table; no column if empty. A quantity over splits has two columns if the
            heading contains ``{split}``, otherwise one for test.
        format: of its cells.
        headline: whether the table of all runs has this column.
        of_prior: whether log p(z) is in it, so that the error of a solver there is part of its standard error.
        caveats: warnings shown next to the number.

    Raises:
        InputError: a part of the declaration is missing or inconsistent.

    Example:
        >>> Quantity("rank", "effective rank of the posterior means")
        Traceback (most recent call last):
        pyrovae.errors.InputError: quantity 'rank': expected a unit, such as "nats", or "1" for a count, got none
    """

    name: str
    long_name: str
    unit: str = ""
    kind: Kind | None = None
    dims: tuple[str, ...] = ()
    group: str = ""
    variable: str = ""
    per_image: bool = False
    heading: str = ""
    format: str = ".2f"
    headline: bool = False
    of_prior: bool = False
    caveats: tuple[Caveat, ...] = ()

    def __post_init__(self) -> None:
        if problem := self._problem():
            raise InputError(f"quantity {self.name!r:.60}: expected {problem}")
        object.__setattr__(self, "variable", self.variable or self.name)

    @property
    def is_number(self) -> bool:
        """Whether it is stored with the numbers of the runs, not with values per image and pictures."""
        return self.dims in NUMBER_DIMS

    @property
    def is_picture(self) -> bool:
        """Whether it is a picture or a curve."""
        return not self.is_number and self.dims != PER_IMAGE_DIMS

    @property
    def has_error(self) -> bool:
        """Whether it has a standard error."""
        return self.is_number and self.kind not in (None, "exact")

    @property
    def variables(self) -> tuple[str, ...]:
        """Its variables in its group: the value, and the standard error if it has one."""
        return (self.variable, f"{self.variable}_se") if self.has_error else (self.variable,)

    def attributes(self, variable: str) -> dict[str, Any]:
        """Attributes of one of its variables in the results."""
        if variable != self.variable:
            return {"units": self.unit, "long_name": f"standard error of {self.variable} over images"}
        known = {"units": self.unit, "long_name": self.long_name, "kind": self.kind, "heading": self.heading}
        shown = {"format": self.format, "headline": int(self.headline)} if self.heading else {}
        return {key: value for key, value in (known | shown).items() if value}

    def _problem(self) -> str:
        """What is expected and missing; empty if nothing is."""
        names = (self.name, *self.dims, *filter(None, (self.group, self.variable)))
        if not all(isinstance(each, str) and each.isidentifier() for each in names):
            return f"names and dimensions that are identifiers, got {', '.join(map(repr, names))}"
        for field_name, text in (("long_name", self.long_name), ("unit", self.unit)):
            if not isinstance(text, str) or not text.strip() or not text.isprintable():
                example = 'such as "nats", or "1" for a count' if field_name == "unit" else "that explains it"
                return f"a {field_name}, {example}, got {repr(text)[:60] if text else 'none'}"
        if self.kind not in (None, *get_args(Kind)):
            return f"a kind of {', '.join(get_args(Kind))} or None, got {self.kind!r}"
        if len(set(self.dims)) < len(self.dims) or ("image" in self.dims and self.dims != PER_IMAGE_DIMS):
            return f'dims that differ, with images as ("split", "image"), got {self.dims}'
        if self.group in RESERVED_GROUPS:
            return f"a group other than {', '.join(RESERVED_GROUPS)}, got {self.group!r}"
        if self.headline and not self.heading:
            return "a heading for a headline number, got none"
        if not self.is_number and (self.heading or self.per_image):
            return f"a heading or per_image only for numbers, got dims {self.dims}"
        return self._format_problem()

    def _format_problem(self) -> str:
        try:
            self.heading.format(split="train"), format(1.0, self.format)
        except (ValueError, KeyError, IndexError):
            return f"a heading and a format such as 'D {{split}}' and '.2f', got {self.heading!r} and {self.format!r}"
        return ""


class MeasureResult:
    """The values of a measure's quantities, by name.

    A number is given as an `Estimate`, as a plain number, or as one value per image, from which mean and standard error
    are taken; over splits, as a pair (train, test) of these, or with validation as the third. None means not measured.
    A picture is an array with the declared dimensions.

    Args:
        note: why a value is missing or not finite.

    Example:
        >>> import torch
        >>> MeasureResult(rate=(torch.ones(3), torch.zeros(2)), active_units=4)
        MeasureResult(rate, active_units)
    """

    def __init__(self, *, note: str = "", **values: Any) -> None:
        self.note = note
        self.values = values

    def __repr__(self) -> str:
        return f"MeasureResult({', '.join(self.values)})"


class DistortionReference(Protocol):
    """What a likelihood says about distortion."""

    def floor(self, x: Tensor) -> Tensor:
        """Smallest possible distortion of each image, ``[n, *event_shape] → [n]``; NaN if there is none."""

    def distortion_at(self, x: Tensor, mean: Tensor) -> Tensor:
        """Distortion of images given mean images, ``[n]``; NaN if the mean does not determine it."""


@dataclass(frozen=True, eq=False)
class TrainedRun:
    """One trained pair with its data, as a measure takes it.

    Attributes:
        pair: the trained pair.
        data: its images.
        settings: how much is measured.
        seed: seed of the run, from which a measure derives its random numbers.
        values: arguments of the programs other than images, such as β.
        terms: loss, distortion and rate of the first images of each split, in the order of ``data.splits()``, float64.
        likelihood: gives the floor, and the distortion at a mean image.
        beta_spread: how much β still varied, where training moved it for a target rate; else None.
        progress: to be called after each of the steps that ``cost`` announces.
        shared: results of `once`, common to the runs of a cohort.
        computed: results of `own`, common to the measures of this run.
    """

    pair: Pair
    data: Dataset
    settings: Measure
    seed: int
    values: Mapping[str, float | Tensor]
    terms: tuple[Terms, ...]
    likelihood: DistortionReference
    beta_spread: float | None = None
    progress: Callable[[], None] = lambda: None
    shared: dict[Callable[..., Any], Any] = field(default_factory=dict)
    computed: dict[Callable[..., Any], Any] = field(default_factory=dict)

    @cached_property
    def encodings(self) -> Encodings:
        """Encodings of all images in float64, computed once.

        Raises:
            UnsupportedError: as `Pair.latent`.
        """
        return encode_all(self.pair, self.data, **self.values)

    def once(self, function: Callable[["TrainedRun"], T]) -> T:
        """The result of a function of the data, settings and likelihood, computed once for all runs of a cohort."""
        return self._kept(self.shared, function)

    def own(self, function: Callable[["TrainedRun"], T], steps: int = 0) -> T:
        """The result of a function of this run, computed once for all measures.

        Args:
            steps: the steps of progress that the function reports. A measure that finds the result known reports them
                too, since its ``cost`` announces them.
        """
        for _ in range(steps if function in self.computed else 0):
            self.progress()
        return self._kept(self.computed, function)

    def _kept(self, results: dict[Callable[..., Any], Any], function: Callable[["TrainedRun"], T]) -> T:
        if function not in results:
            results[function] = function(self)
        result: T = results[function]
        return result
