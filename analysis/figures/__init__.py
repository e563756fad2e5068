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
from pyrovae.analysis.figures.learning import learning_curves, weight_of_rate
from pyrovae.analysis.figures.likelihood import log_likelihood, pareto_k
from pyrovae.analysis.figures.pictures import latent_plane, pair_plot, reconstructions, samples, traversals
from pyrovae.analysis.figures.plane import distortion, distortion_over_gap, rate_distortion
from pyrovae.analysis.figures.priors import gap_decomposition
from pyrovae.analysis.figures.rates import information, population, saturation
from pyrovae.analysis.figures.style import FORMATS, WIDTH, content, rc_params, write
from pyrovae.errors import InputError
from pyrovae.store.results import Evaluation

#: All figures by name, in the order of the report.
FIGURES: Mapping[str, Callable[[Evaluation, Axes], Axes]] = {
    draw.__name__: draw
    for draw in (
        rate_distortion,
        distortion,
        distortion_over_gap,
        information,
        saturation,
        population,
        gap_decomposition,
        generalization_gap,
        fixed_decoder_curve,
        log_likelihood,
        pareto_k,
        learning_curves,
        weight_of_rate,
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
    pyplot.draw_if_interactive()  # loads the backend, which makes a notebook interactive; the block would reset that
    with matplotlib.rc_context(rc_params()):
        if ax is None:
            _, ax = pyplot.subplots(layout="constrained")
        FIGURES[name](results, ax)
    figure: Any = ax.figure
    if not any(each.has_data() for each in figure.axes):
        raise InputError(f"{name}: expected results that the figure could show, got none")
    return ax


def drawn(
    results: Evaluation, names: Collection[str] = FIGURES.keys(), *, width: float | None = None, dark: bool = False
) -> dict[str, Figure]:
    """The figures for which a study has results, by name: all, or those of some names.

    Args:
        width: of every figure in inches, for a paper; by default, figures with many panels are wider than others.
        dark: whether to draw light on dark.
    """
    figures = {}
    with matplotlib.rc_context(rc_params(width or WIDTH, dark=dark)):
        for name, draw in FIGURES.items():
            if name not in names:
                continue
            figure = (Figure if width is None else _OfWidth)(layout="constrained")
            draw(results, figure.subplots())
            if any(ax.has_data() for ax in figure.axes):
                figures[name] = figure
    return figures


def captions() -> dict[str, str]:
    """Captions of the figures by name: their docstrings."""
    return {name: cleandoc(draw.__doc__ or "") for name, draw in FIGURES.items()}


def save(results: Evaluation, folder: Path, names: Collection[str] = FIGURES.keys()) -> list[Path]:
    """Draws the figures for which a study has results, as `drawn`, and writes them as PNG and SVG."""
    return write(drawn(results, names), folder)


def dark_pictures(results: Evaluation) -> dict[str, bytes]:
    """The figures for which a study has results, light on dark, as PNG."""
    return {name: bytes(content(figure, "png")) for name, figure in drawn(results, dark=True).items()}


def save_for_print(
    results: Evaluation, folder: Path, names: Collection[str], *, formats: Collection[str], width: float, dark: bool
) -> list[Path]:
    """Draws figures of some width, as `drawn`, and writes them in some formats; errors as in `Results.save_figures`."""
    for kind, asked, valid in (("figure", names, FIGURES), ("format", formats, FORMATS)):
        if unknown := [each for each in asked if each not in valid]:
            raise InputError(f"unknown {kind} {unknown[0]!r:.200}; valid: {', '.join(valid)}")
    found = drawn(results, names or FIGURES.keys(), width=width, dark=dark)
    if missing := [name for name in names if name not in found]:
        raise InputError(f"{missing[0]}: expected results that the figure could show, got none")
    return write(found, folder, formats)


class _OfWidth(Figure):
    """A figure that keeps its width: a new size changes its proportions alone."""

    def set_size_inches(self, w: Any, h: float | None = None, forward: bool = True) -> None:
        width, height = w if h is None else (w, h)
        own = self.get_figwidth()
        super().set_size_inches(own, own / width * height, forward)
