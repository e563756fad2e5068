"""Figures of items: reconstructions, samples from the prior, pairs of dimensions, traversals, and the latent plane."""

from itertools import product
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pyrovae.analysis.figures.colours import COLOURS, grey, visible
from pyrovae.analysis.figures.style import first_varying, panels, shown, strip
from pyrovae.store.results import Evaluation

Data = TypeVar("Data", xr.DataArray, xr.Dataset)
#: Variables of a block of reconstructions and their labels, from top to bottom.
_ROWS = {"reconstruction": "learned", "memorised": "memorising", "nearest": "nearest training"}


def reconstructions(results: Evaluation, ax: Axes) -> Axes:
    """Test images, their reconstructions by the learned and the memorising decoder, and the nearest training image.

    The nearest training image is that of the learned reconstruction. Columns are by β, rows by depth; all other axes,
    the seed included, are at their first value. The top row shows the test images.
    """
    pictures, fixed = _pictures(results, "reconstructions", ["depth"], beta=shown(_betas(results)))
    if not pictures:
        return ax
    betas, depths = _values(pictures, "beta"), _values(pictures, "depth")
    rows = 1 + len(_ROWS) * len(depths)
    axes = panels(ax, rows, len(betas), (1.4 + 3.4 * len(betas), 0.5 + 0.5 * rows))
    for column, beta in enumerate(betas):
        axes[0, column].set_title(f"β = {beta:g}")
        for number, depth in enumerate(depths):
            cell = _select(pictures, beta=beta, depth=depth)
            if number == 0:
                strip(axes[0, column], cell["original"], "test image" if column == 0 else "")
            for at, (name, label) in enumerate(_ROWS.items(), start=1 + number * len(_ROWS)):
                text = label if depth is None else f"{label}, depth {depth}"
                strip(axes[at, column], cell[name], text if column == 0 else "")
    axes[-1, 0].set_xlabel(fixed, fontsize="small")
    return ax


def samples(results: Evaluation, ax: Axes) -> Axes:
    """Images decoded from draws of the prior, E[x|z] with z ~ p(z), in rows by prior, by γ or by β.

    Columns are by β unless the rows are. All other axes, the seed included, are at their first value.
    """
    axis = first_varying(results.tree, ["prior", "gamma"]) or "beta"
    pictures, fixed = _pictures(results, "samples", [axis, "beta"])
    if not pictures:
        return ax
    images = pictures["image"]
    blocks = [None] if axis == "beta" else images.beta.values.tolist()
    rows = images.sizes[axis]
    axes = panels(ax, rows, len(blocks), (1.2 + 3.6 * len(blocks), 0.6 + 0.5 * rows))
    for (row, value), (column, beta) in product(enumerate(images[axis].values.tolist()), enumerate(blocks)):
        cell = _select(images, **{"beta": beta, axis: value})
        panel = axes[row, column]
        label = str(value) if axis == "prior" else f"{'β' if axis == 'beta' else 'γ'} = {value:g}"
        strip(panel, cell, label if column == 0 else "")
        if row == 0 and beta is not None:
            panel.set_title(f"β = {beta:g}")
    axes[-1, 0].set_xlabel(f"decoded from p(z){f'; {fixed}' if fixed else ''}", fontsize="small")
    return ax


def pair_plot(results: Evaluation, ax: Axes) -> Axes:
    """Test vectors and draws x ~ p(x) from the model, in the first dimensions: pairs of them, and histograms.

    Upper triangle and grey: test vectors; lower triangle and colour: draws. All axes, the seed included, are at the
    first value, but β is as close to 1 as there is.
    """
    beta = min(_betas(results), key=lambda value: abs(np.log(value)))
    found, fixed = _pictures(results, "vectors", [], beta=beta)
    if not found:
        return ax
    data, generated = (found[name].dropna("sample").values for name in ("data", "generated"))
    if not len(data) or not len(generated):
        return ax
    both, size = np.concatenate([data, generated]), data.shape[1]
    axes = panels(ax, size, size, (1.0 + 1.5 * size, 1.0 + 1.5 * size), sharex="col")
    look = {"s": 3, "linewidths": 0, "alpha": 0.6, "rasterized": True}
    for row, column in product(range(size), repeat=2):
        panel = axes[row, column]
        panel.tick_params(labelsize="small")
        if row == column:
            bins = np.histogram_bin_edges(both[:, row], bins=20)
            panel.hist(data[:, row], bins=bins, color=grey(0.4), label="test")
            panel.hist(generated[:, row], bins=bins, color=visible(COLOURS[0]), histtype="step", label="p(x)")
            panel.set_yticks([])
        else:
            points, colour = (data, grey(0.6)) if column > row else (generated, visible(COLOURS[0]))
            panel.scatter(points[:, column], points[:, row], color=colour, **look)
            panel.set_ylim(both[:, row].min(), both[:, row].max())
        if column == 0:
            panel.set_ylabel(f"x{row + 1}", fontsize="small")
    axes[0, 0].legend(fontsize="small")
    axes[-1, 0].set_xlabel(f"β = {beta:g}{f'; {fixed}' if fixed else ''}", fontsize="small")
    return ax


def traversals(results: Evaluation, ax: Axes) -> Axes:
    """E[x|z] along the latents that separate training images best, from the 1st to the 99th percentile of q(z).

    The other latents are those of the first test image. Labels show the latent and the share of its variance that is
    between images. Columns are by β, rows by depth; all other axes, the seed included, are at their first value.
    """
    pictures, fixed = _pictures(results, "traversals", ["depth"], beta=shown(_betas(results)))
    if not pictures:
        return ax
    betas, depths = _values(pictures, "beta"), _values(pictures, "depth")
    ranks = pictures.sizes["rank"]
    rows = ranks * len(depths)
    axes = panels(ax, rows, len(betas), (1.0 + 3.4 * len(betas), 0.5 + 0.5 * rows))
    for (column, beta), (number, depth) in product(enumerate(betas), enumerate(depths)):
        cell = _select(pictures, beta=beta, depth=depth)
        for rank in range(ranks):
            row = cell.isel(rank=rank)
            panel = axes[number * ranks + rank, column]
            strip(panel, row["traversal"], f"z{row['latent']:.0f}, {row['share']:.0%}")
        axes[number * ranks, column].set_title(f"β = {beta:g}" + ("" if depth is None else f", depth {depth}"))
    axes[-1, 0].set_xlabel(fixed, fontsize="small")
    return ax


def latent_plane(results: Evaluation, ax: Axes) -> Axes:
    """Densities of a two-dimensional z: q(z) shaded, p(z) as contour lines, both relative to their maximum.

    Columns are by prior or γ, rows by β; all other axes, the seed included, are at their first value. Nothing is drawn
    if z does not have two dimensions.
    """
    axis = first_varying(results.tree, ["prior", "gamma"])
    plane, fixed = _pictures(results, "plane", [str(axis), "beta"])
    if not plane:
        return ax
    values = [None] if axis is None else plane[axis].values.tolist()
    betas = _values(plane, "beta")
    axes = panels(ax, len(betas), len(values), (0.6 + 1.9 * len(values), 0.5 + 1.9 * len(betas)))
    for (row, beta), (column, value) in product(enumerate(betas), enumerate(values)):
        cell = _select(plane, beta=beta, **{str(axis): value})
        panel = axes[row, column]
        if cell["log_q"].isnull().all():
            continue
        shades = _relative_density(cell["log_q"].values)
        panel.pcolormesh(cell["z1"], cell["z2"], shades, cmap="Blues", vmin=0, vmax=1, rasterized=True)
        lines = _relative_density(cell["log_p"].values)
        panel.contour(cell["z1"], cell["z2"], lines, levels=[0.05, 0.2, 0.5, 0.8], colors="#d55e00", linewidths=0.8)
        panel.tick_params(labelsize="small")
        if row == 0 and axis is not None:
            panel.set_title(str(value) if axis == "prior" else f"γ = {value:g}", fontsize="small")
        if column == 0:
            panel.set_ylabel(f"β = {beta:g}", fontsize="small")
    axes[-1, 0].set_xlabel(f"q(z) shaded, p(z) as lines{f'; {fixed}' if fixed else ''}", fontsize="small")
    return ax


def _values(data: xr.Dataset, dim: str) -> list[Any]:
    """The values of a dimension; a single None if there is no such dimension."""
    return data[dim].values.tolist() if dim in data.dims else [None]


def _select(data: Data, **at: Any) -> Data:
    """Data at some values of its dimensions; those that are None are ignored."""
    return data.sel({dim: value for dim, value in at.items() if value is not None})


def _relative_density(log_density: np.ndarray) -> np.ndarray:
    return np.exp(log_density - np.nanmax(log_density))


def _betas(results: Evaluation) -> list[float]:
    """All β of a study."""
    betas: list[float] = results.tree["rate_distortion"].to_dataset()["beta"].values.tolist()
    return betas


def _pictures(results: Evaluation, group: str, free: list[str], **at: Any) -> tuple[xr.Dataset, str]:
    """Pictures of the finished runs at some coordinates, and a label.

    Other axes that are not free are at their first value. The label says which, where they have several values.
    """
    grid = results.tree["rate_distortion"].to_dataset()["rate"]
    fixed = {str(dim): grid[dim].values.tolist()[0] for dim in grid.dims if dim not in ("split", *at, *free)}
    label = ", ".join(f"{dim} {value}" for dim, value in fixed.items() if grid.sizes[dim] > 1)
    pictures = results.pictures(group, **at, **fixed)
    measured = grid.isel(split=0, drop=True).sel({**at, **fixed}).notnull()
    for dim in set(measured.dims) & set(pictures.dims):
        pictures = pictures.isel({dim: measured.any([other for other in measured.dims if other != dim]).values})
    return pictures if all(pictures.sizes.values()) else xr.Dataset(), label
