"""Figures of priors: what the rate is made of, what is decoded from p(z), and the latent plane. Pure functions."""

from itertools import product
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyrovae.analysis.effects import cells

#: Colours of I and G.
_INFORMATION, _GAP = "#0072b2", "#e69f00"
#: Bars this many times as high as the median bar are cut off, and say how high they are.
_CUT = 3.0
#: Most panels of a figure.
MANY = 12


def gap_decomposition(tree: xr.DataTree) -> Figure | None:
    """The rate split into mutual information and prior gap, train beside test, by prior or by γ; means over seeds.

    Train is R = I + G under the q(z) of the training images, test the same under that of the test images. The error
    bars are standard errors of the sum over seeds. Under leave-one-out p(z) is q(z) and G of the training images zero,
    though each of them is held to the others alone. None where the study has one prior and one γ, or G is not measured.
    """
    axis = _axis(tree, ["prior", "gamma"])
    if axis is None:
        return None
    codes = tree["information"].to_dataset()
    if codes["prior_gap"].isnull().all():
        return None
    panels = list(cells(codes, {"seed", axis}))[:MANY]
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(0.5 + 0.55 * columns * (2 + codes.sizes[axis]), 1 + 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes[len(panels) :]:
        ax.remove()
    for ax, (where, cell) in zip(axes, panels, strict=False):
        _decomposition(cell, axis, ax)
        ax.set_title(where, fontsize=9)
    axes[0].legend(fontsize=8)
    figure.supylabel("nats per image", fontsize=9)
    return figure


def _decomposition(cell: xr.Dataset, axis: str, ax: Axes) -> None:
    """Stacked bars of I and G for each value of an axis, train filled and test hatched."""
    places = np.arange(cell.sizes[axis])
    bars = []
    for side, prefix in (("train", ""), ("test", "test_")):
        parts = [cell[f"{prefix}{name}"].transpose("seed", axis).values for name in ("mutual_information", "prior_gap")]
        errors = np.sum(parts, axis=0).std(0, ddof=1) / len(cell.seed) ** 0.5 if len(cell.seed) > 1 else None
        bars.append((side, *(part.mean(0) for part in parts), errors))
    totals = np.concatenate([information + gap for _, information, gap, _ in bars])
    top = max(_CUT * np.nanmedian(totals), 1.0)
    for shift, (side, information, gap, errors) in zip((-0.2, 0.2), bars, strict=True):
        look: dict[str, Any] = {"width": 0.38, "edgecolor": "white", "hatch": "" if side == "train" else "////"}
        ax.bar(places + shift, information, color=_INFORMATION, label=f"I {side}", **look)
        whole = information + gap
        cut = whole > top
        ax.bar(places + shift, gap, bottom=information, color=_GAP, label=f"G {side}", **look)
        if errors is not None:
            kept: dict[str, Any] = {"fmt": "none", "ecolor": "0.2", "elinewidth": 0.8, "capsize": 2}
            ax.errorbar((places + shift)[~cut], whole[~cut], errors[~cut], **kept)
        for place, height in zip((places + shift)[cut], whole[cut], strict=True):
            label: dict[str, Any] = {"ha": "center", "va": "top", "fontsize": 7.5, "bbox": {"color": "white", "pad": 1}}
            ax.annotate(f"{height:.0f}", (place, 0.98 * top), **label)
    if (totals > top).any():
        ax.set_ylim(top=top)
    ax.set_ylim(bottom=min(0.0, float(np.nanmin([gap.min() for _, _, gap, _ in bars]))))
    names = [str(value).replace("_", "\n") if axis == "prior" else f"γ = {value:g}" for value in cell[axis].values]
    ax.set_xticks(places, names, fontsize=7.5)


def samples(tree: xr.DataTree) -> Figure | None:
    """Images decoded from draws of each prior, E[x|z] at z ~ p(z), side by side: a block of columns for each β.

    Rows run over the priors, or over γ, or over β where there is nothing else; other axes stand at their first value,
    the seed too. None where images cannot be decoded.
    """
    if "samples" not in tree.children:
        return None
    axis = _axis(tree, ["prior", "gamma"]) or "beta"
    images = drawn = tree["samples"].to_dataset()["image"]
    blocks = [None] if axis == "beta" else images.beta.values.tolist()
    sides = ["sample", "channel", "row", "column"]
    fixed = {str(dim): 0 for dim in images.dims if dim not in (axis, "beta", *sides)}
    images = images.isel(fixed)
    figure = Figure(figsize=(1.2 + 3.6 * len(blocks), 0.6 + 0.5 * images.sizes[axis]), layout="constrained")
    axes = figure.subplots(images.sizes[axis], len(blocks), squeeze=False)
    for (row, value), (column, beta) in product(enumerate(images[axis].values.tolist()), enumerate(blocks)):
        cell = images.sel({axis: value} | ({} if beta is None else {"beta": beta}))
        ax = axes[row, column]
        label = str(value) if axis == "prior" else f"{'β' if axis == 'beta' else 'γ'} = {value:g}"
        strip(ax, cell, label if column == 0 else "")
        if row == 0 and beta is not None:
            ax.set_title(f"β = {beta:g}", fontsize=9)
    held = ", ".join(f"{dim} {drawn[dim].values[0]}" for dim in fixed if drawn.sizes[dim] > 1)
    figure.suptitle(f"decoded from p(z){f' ({held})' if held else ''}", fontsize=9)
    return figure


def strip(ax: Axes, images: xr.DataArray, label: str) -> None:
    """Images side by side, with a label to the left of them."""
    row = np.concatenate(list(images.transpose("sample", "row", "column", "channel").values), axis=1)
    ax.imshow(row.squeeze(-1) if row.shape[-1] == 1 else row, cmap="gray", vmin=0, vmax=255)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=8)


def latent_plane(tree: xr.DataTree) -> Figure | None:
    """The plane of a z with two dimensions: q(z) as shades, p(z) as lines, each at equal shares of its highest density.

    Columns run over priors or γ, rows over β; other axes stand at their first value, the seed too. None where z has
    another number of dimensions.
    """
    if "plane" not in tree.children:
        return None
    axis = _axis(tree, ["prior", "gamma"])
    plane = tree["plane"].to_dataset()
    fixed = {str(dim): 0 for dim in plane["log_q"].dims if dim not in (axis, "beta", "row", "column")}
    plane = plane.isel(fixed)
    values = [None] if axis is None else plane[axis].values.tolist()
    betas = plane.beta.values.tolist()
    figure = Figure(figsize=(0.6 + 1.9 * len(values), 0.5 + 1.9 * len(betas)), layout="constrained")
    axes = figure.subplots(len(betas), len(values), squeeze=False)
    for (row, beta), (column, value) in product(enumerate(betas), enumerate(values)):
        cell = plane.sel({"beta": beta} | ({} if axis is None else {axis: value}))
        ax = axes[row, column]
        if cell["log_q"].isnull().all():
            continue
        shades = _share_of_highest(cell["log_q"].values)
        ax.pcolormesh(cell["z1"], cell["z2"], shades, cmap="Blues", vmin=0, vmax=1, rasterized=True)
        lines = _share_of_highest(cell["log_p"].values)
        ax.contour(cell["z1"], cell["z2"], lines, levels=[0.05, 0.2, 0.5, 0.8], colors="#d55e00", linewidths=0.8)
        ax.tick_params(labelsize=7)
        if row == 0 and axis is not None:
            ax.set_title(str(value) if axis == "prior" else f"γ = {value:g}", fontsize=8)
        if column == 0:
            ax.set_ylabel(f"β = {beta:g}", fontsize=8)
    figure.suptitle("q(z) in shades, p(z) in lines", fontsize=9)
    return figure


def _share_of_highest(log_density: np.ndarray) -> np.ndarray:
    return np.exp(log_density - np.nanmax(log_density))


def _axis(tree: xr.DataTree, names: list[str]) -> str | None:
    """The first of some axes that has several values in the study."""
    sizes = tree["rate_distortion"].sizes
    return next((name for name in names if sizes.get(name, 1) > 1), None)
