"""One loop over measures: the numbers, values per image and pictures of a trained run."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pyrovae.errors import InputError, UnsupportedError
from pyrovae.estimators import Estimate, mean_over_images
from pyrovae.estimators.marginal import draw
from pyrovae.measures.declared import DeclaredMeasure
from pyrovae.measures.measure import PER_IMAGE_DIMS, MeasureResult, Quantity, TrainedRun
from pyrovae.programs.noise import generator
from pyrovae.system.memory import is_out_of_memory

#: Values by group and variable.
Groups = dict[str, dict[str, NDArray[Any]]]


class Measurements(NamedTuple):
    """What was measured on a run.

    Attributes:
        numbers: by group and variable, ``[]``, ``[split]`` or ``[level, split]``.
        images: values per image by name, ``[split, images]``, NaN after the images of a split.
        pictures: pictures and curves by group and variable.
        note: what was not measured and why; empty if everything was.
        sites: latent sites, along the dimension ``level``.
        quantities: the declarations, without caveats, of what was measured.
        splits: names of the splits.
    """

    numbers: Groups
    images: dict[str, NDArray[np.float64]]
    pictures: Groups
    note: str
    sites: list[str]
    quantities: tuple[Quantity, ...]
    splits: list[str]


def evaluate(run: TrainedRun, measures: Sequence[DeclaredMeasure]) -> Measurements:
    """Applies measures to a run; weights are only read.

    A measure that raises `UnsupportedError` is skipped with a note.

    Raises:
        InputError: a result differs from its declaration.
    """
    quantities = tuple(replace(each, caveats=()) for measure in measures for each in measure.quantities)
    splits = [name for name, _ in run.data.splits()]
    found = Measurements({}, {}, {}, "", list(run.terms[0].rates), quantities, splits)
    notes: dict[str, list[str]] = defaultdict(list)
    # With validation, a diverged run would raise.
    with torch.no_grad(), pyro.validation_enabled(False):
        solver = solver_error(run)
        for measure in measures:
            try:
                result = _applied(measure, run)
            except UnsupportedError as error:
                notes[f"not measured, {error}"].append(measure.name)
                continue
            check(measure, result)
            for quantity in measure.quantities:
                if result.values[quantity.name] is not None:
                    further = solver if quantity.of_prior else 0.0
                    _enter(found, quantity, result.values[quantity.name], run.settings.per_image, further)
            if result.note:
                notes[result.note].append(measure.name)
    return found._replace(note="; ".join(f"{', '.join(names)}: {note}" for note, names in notes.items()))


def solver_error(run: TrainedRun) -> float:
    """The mean error in log p(z) that the prior's solver leaves at the codes of either split; 0 if it has none."""
    solver = getattr(getattr(run.pair.model, "prior", None), "solver_error", None)
    if solver is None:
        return 0.0
    draws, number = generator(run.seed, "solver"), run.settings.images
    return max(solver(draw(q, 1, draws)[0, :number]).mean().item() for q in run.encodings[:2])


def _applied(measure: DeclaredMeasure, run: TrainedRun) -> MeasureResult:
    """The result of a measure; an error in its code becomes one line that names it."""
    try:
        return measure.function(run)
    except (UnsupportedError, InputError):
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"measure {measure.name}: expected a result, got {type(error).__name__}: {reason} (--debug shows where)"
        ) from error


def check(measure: DeclaredMeasure, result: MeasureResult) -> None:
    """Raises InputError if the names in a result are not those that its measure declares."""
    declared = {quantity.name for quantity in measure.quantities}
    if not isinstance(result, MeasureResult):
        raise InputError(f"measure {measure.name}: expected a MeasureResult, got {type(result).__name__}")
    if unknown := result.values.keys() - declared:
        raise InputError(
            f"measure {measure.name}: expected only what QUANTITIES declares ({', '.join(sorted(declared))}), "
            f"got {', '.join(sorted(unknown))} too"
        )
    if missing := declared - result.values.keys():
        raise InputError(
            f"measure {measure.name}: expected all that QUANTITIES declares, got no {', '.join(sorted(missing))}; "
            "None says that it is not measured"
        )


def _enter(found: Measurements, quantity: Quantity, value: Any, per_image: int, error: float) -> None:
    """Enters the value of a quantity, with an error besides that over images."""
    try:
        if quantity.dims == PER_IMAGE_DIMS:
            found.images[quantity.name] = _padded(_of_splits(value, found.splits), per_image)
        elif quantity.is_picture:
            found.pictures.setdefault(quantity.group, {})[quantity.variable] = _picture(quantity, value)
        else:
            numbers = np.array(_numbers(quantity.dims, value, quantity.kind, found.splits), float)
            numbers[..., 1] = np.hypot(numbers[..., 1], error)
            columns = np.moveaxis(numbers, -1, 0)  # value and standard error
            found.numbers.setdefault(quantity.group, {}).update(zip(quantity.variables, columns, strict=False))
            if quantity.per_image:
                of_splits = value if quantity.dims else (value[:0], value)
                found.images[quantity.name] = _padded(_of_splits(of_splits, found.splits), per_image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"quantity {quantity.name!r}: expected dims {quantity.dims}, but {error}") from None


def _of_splits(values: Any, splits: list[str]) -> tuple[Any, ...]:
    """The value on each split; a measure that takes no account of validation images has none there."""
    if not isinstance(values, tuple | list) or not 2 <= len(values) <= len(splits):
        raise ValueError(f"got a {type(values).__name__} instead of a pair (train, test)")
    return (*values, *(None for _ in splits[len(values) :]))


def _numbers(dims: tuple[str, ...], value: Any, kind: str | None, splits: list[str]) -> Any:
    """Value and standard error, nested by dimension."""
    if dims[:1] == ("level",):
        return [_numbers(dims[1:], value[site], kind, splits) for site in value]
    if dims == ("split",):
        return [_numbers((), each, kind, splits) for each in _of_splits(value, splits)]
    if value is None:
        return np.nan, np.nan
    if isinstance(value, Tensor) and value.dim() == 1:
        if kind is None:
            raise ValueError('values per image need a kind: "unbiased" for a standard error, "exact" for none')
        value = mean_over_images(value.double(), "exact")
    if isinstance(value, Estimate):
        return value.value, value.se
    if kind not in (None, "exact"):
        raise ValueError(f"a number that is {kind} has a standard error: return an Estimate or a value per image")
    return float(value), np.nan


def _picture(quantity: Quantity, value: Any) -> NDArray[Any]:
    array = value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
    if array.ndim != len(quantity.dims):
        raise ValueError(f"got shape {list(array.shape)}")
    return array


def _padded(splits: tuple[Tensor | None, ...], length: int) -> NDArray[np.float64]:
    """Values per image of all splits in one array, ``[split, images]``, NaN after the images of a split."""
    known = [torch.empty(0) if each is None else each.double().cpu() for each in splits]
    padded = [pad(each.double(), (0, length - len(each)), value=torch.nan) for each in known]
    return torch.stack(padded).numpy()
