"""Figures of items: reconstructions, samples from the prior, pairs of dimensions, traversals, and the latent plane."""

from itertools import product
from typing import Any, TypeVar

import numpy as np
import xarray as xr
from matplotlib.axes import Axes

from pyrovae.analysis.figures.colours import COLOURS, grey, visible
from pyrovae.analysis.figures.style import first_varying, panels, shown, strip, swept, titled
from pyrovae.store.results import Evaluation

Data = TypeVar("Data", xr.DataArray, xr.Dataset)
#: Variables of a block of reconstructions and their labels, from top to bottom.
_ROWS = {"reconstruction": "learned", "memorised": "memorising", "nearest": "nearest training"}


def reconstructions(results: Evaluation, ax: Axes) -> Axes:
    """Test images, their reconstructions by the learned and the memorising decoder, and the nearest training image.

    The nearest training image is that of the learned reconstruction. Columns are by β, rows by depth; all other axes,
    the seed included, are at their first value. The top row shows the test images.
    """
    along, values = _swept(results)
    pictures, fixed = _pictures(results, "reconstructions", ["depth"], **{along: shown(values)})
    if not pictures:
        return ax
    few, depths = _values(pictures, along), _values(pictures, "depth")
    rows = 1 + len(_ROWS) * len(depths)
    axes = panels(ax, rows, len(few), (1.4 + 3.4 * len(few), 0.5 + 0.5 * rows))
    for column, value in enumerate(few):
        axes[0, column].set_title(titled(along, value))
        for number, depth in enumerate(depths):
            cell = _select(pictures, **{along: value, "depth": depth})
            if number == 0:
                strip(axes[0, column], cell["original"], "test image" if column == 0 else "")
            for row, (name, label) in enumerate(_ROWS.items(), start=1 + number * len(_ROWS)):
                text = label if depth is None else f"{label}, depth {depth}"
                strip(axes[row, column], cell[name], text if column == 0 else "")
    axes[-1, 0].set_xlabel(fixed, fontsize="small")
    return ax


def samples(results: Evaluation, ax: Axes) -> Axes:
    """Images decoded from draws of the prior, E[x|z] with z ~ p(z), in rows by prior, by γ or by β.

    Columns are by β unless the rows are. All other axes, the seed included, are at their first value.
    """
    along, _ = _swept(results)
    axis = first_varying(results.tree, ["prior", "gamma"]) or along
    pictures, fixed = _pictures(results, "samples", [axis, along])
    if not pictures:
        return ax
    images = pictures["image"]
    blocks = [None] if axis == along else images[along].values.tolist()
    rows = images.sizes[axis]
    axes = panels(ax, rows, len(blocks), (1.2 + 3.6 * len(blocks), 0.6 + 0.5 * rows))
    for (row, value), (column, block) in product(enumerate(images[axis].values.tolist()), enumerate(blocks)):
        cell = _select(images, **{along: block, axis: value})
        panel = axes[row, column]
        label = str(value) if axis == "prior" else titled(axis, value)
        strip(panel, cell, label if column == 0 else "")
        if row == 0 and block is not None:
            panel.set_title(titled(along, block))
    axes[-1, 0].set_xlabel(f"decoded from p(z){f'; {fixed}' if fixed else ''}", fontsize="small")
    return ax


def pair_plot(results: Evaluation, ax: Axes) -> Axes:
    """Test vectors and draws x ~ p(x) from the model, in the first dimensions: pairs of them, and histograms.

    Upper triangle and grey: test vectors; lower triangle and colour: draws. All axes, the seed included, are at the
    first value, but β is as close to 1 as there is.
    """
    along, values = _swept(results)
    central = min(values, key=lambda value: abs(np.log(value)))
    found, fixed = _pictures(results, "vectors", [], **{along: central})
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
    axes[-1, 0].set_xlabel(f"{titled(along, central)}{f'; {fixed}' if fixed else ''}", fontsize="small")
    return ax


def traversals(results: Evaluation, ax: Axes) -> Axes:
    """E[x|z] along the latents that separate training images best, from the 1st to the 99th percentile of q(z).

    The other latents are those of the first test image. Labels show the latent and the share of its variance that is
    between images. Columns are by β, rows by depth; all other axes, the seed included, are at their first value.
    """
    along, values = _swept(results)
    pictures, fixed = _pictures(results, "traversals", ["depth"], **{along: shown(values)})
    if not pictures:
        return ax
    few, depths = _values(pictures, along), _values(pictures, "depth")
    ranks = pictures.sizes["rank"]
    rows = ranks * len(depths)
    axes = panels(ax, rows, len(few), (1.0 + 3.4 * len(few), 0.5 + 0.5 * rows))
    for (column, value), (number, depth) in product(enumerate(few), enumerate(depths)):
        cell = _select(pictures, **{along: value, "depth": depth})
        for rank in range(ranks):
            row = cell.isel(rank=rank)
            panel = axes[number * ranks + rank, column]
            strip(panel, row["traversal"], f"z{row['latent']:.0f}, {row['share']:.0%}")
        axes[number * ranks, column].set_title(titled(along, value) + ("" if depth is None else f", depth {depth}"))
    axes[-1, 0].set_xlabel(fixed, fontsize="small")
    return ax


def latent_plane(results: Evaluation, ax: Axes) -> Axes:
    """Densities of a two-dimensional z: q(z) shaded, p(z) as contour lines, both relative to their maximum.

    Columns are by prior or γ, rows by β; all other axes, the seed included, are at their first value. Nothing is drawn
    if z does not have two dimensions.
    """
    along, _ = _swept(results)
    axis = first_varying(results.tree, ["prior", "gamma"])
    plane, fixed = _pictures(results, "plane", [str(axis), along])
    if not plane:
        return ax
    values = [None] if axis is None else plane[axis].values.tolist()
    rows = _values(plane, along)
    axes = panels(ax, len(rows), len(values), (0.6 + 1.9 * len(values), 0.5 + 1.9 * len(rows)))
    for (row, of_row), (column, value) in product(enumerate(rows), enumerate(values)):
        cell = _select(plane, **{along: of_row, str(axis): value})
        panel = axes[row, column]
        if cell["log_q"].isnull().all():
            continue
        shades = _relative_density(cell["log_q"].values)
        panel.pcolormesh(cell["z1"], cell["z2"], shades, cmap="Blues", vmin=0, vmax=1, rasterized=True)
        lines = _relative_density(cell["log_p"].values)
        panel.contour(cell["z1"], cell["z2"], lines, levels=[0.05, 0.2, 0.5, 0.8], colors="#d55e00", linewidths=0.8)
        panel.tick_params(labelsize="small")
        if row == 0 and axis is not None:
            panel.set_title(str(value) if axis == "prior" else titled(axis, value), fontsize="small")
        if column == 0:
            panel.set_ylabel(titled(along, of_row), fontsize="small")
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


def _swept(results: Evaluation) -> tuple[str, list[float]]:
    """The axis of β, or of target rates in its place, and its values."""
    data = results.tree["rate_distortion"].to_dataset()
    return swept(data), data[swept(data)].values.tolist()


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
