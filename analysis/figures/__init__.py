"""Figures: pure functions (results, ax) → ax, which draw nothing if there is nothing to show."""

from collections.abc import Callable, Collection, Mapping
from inspect import cleandoc
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.analysis.figures.generalization import fixed_decoder_curve, generalization_gap
from pyrovae.analysis.figures.learning import learning_curves
from pyrovae.analysis.figures.likelihood import log_likelihood, pareto_k
from pyrovae.analysis.figures.pictures import latent_plane, pair_plot, reconstructions, samples, traversals
from pyrovae.analysis.figures.plane import distortion, rate_distortion
from pyrovae.analysis.figures.priors import gap_decomposition
from pyrovae.analysis.figures.rates import information, saturation
from pyrovae.analysis.figures.style import STYLE, write
from pyrovae.errors import InputError
from pyrovae.store.results import Evaluation

#: Size of a figure in inches.
SIZE = (6.4, 4.8)
#: All figures by name, in the order of the report.
FIGURES: Mapping[str, Callable[[Evaluation, Axes], Axes]] = {
    draw.__name__: draw
    for draw in (
        rate_distortion,
        distortion,
        information,
        saturation,
        gap_decomposition,
        generalization_gap,
        fixed_decoder_curve,
        log_likelihood,
        pareto_k,
        learning_curves,
        reconstructions,
        samples,
        pair_plot,
        traversals,
        latent_plane,
    )
}


def plot(results: Evaluation, name: str, ax: Axes | None = None) -> Axes:
    """Draws one figure by its name.

    Args:
        ax: where to draw; a new figure by default.

    Raises:
        InputError: there is no such figure, or the results have nothing that it could show.
    """
    if name not in FIGURES:
        raise InputError(f"unknown figure {name!r}; valid: {', '.join(FIGURES)}")
    with matplotlib.rc_context(STYLE):
        if ax is None:
            _, ax = pyplot.subplots(figsize=SIZE, layout="constrained")
        FIGURES[name](results, ax)
    figure: Any = ax.figure
    if not any(each.has_data() for each in figure.axes):
        raise InputError(f"{name}: expected results that the figure could show, got none")
    return ax


def drawn(results: Evaluation, names: Collection[str] = FIGURES.keys()) -> dict[str, Figure]:
    """The figures for which a study has results, by name: all, or those of some names."""
    figures = {}
    with matplotlib.rc_context(STYLE):
        for name, draw in FIGURES.items():
            if name not in names:
                continue
            figure = Figure(figsize=SIZE, layout="constrained")
            draw(results, figure.subplots())
            if any(ax.has_data() for ax in figure.axes):
                figures[name] = figure
    return figures


def captions() -> dict[str, str]:
    """Captions of the figures by name: the first paragraph of each docstring."""
    return {name: cleandoc(draw.__doc__ or "").split("\n\n")[0] for name, draw in FIGURES.items()}


def save(results: Evaluation, folder: Path, names: Collection[str] = FIGURES.keys()) -> list[Path]:
    """Draws the figures for which a study has results, as `drawn`, and writes them as PNG and SVG."""
    return write(drawn(results, names), folder)
