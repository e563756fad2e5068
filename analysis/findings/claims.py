"""The findings that a study can speak to, each computed from the study at hand, with an error and a verdict."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import xarray as xr

from pyrovae.analysis.findings.memorisation import about_memorisation
from pyrovae.analysis.findings.priors import about_gamma, about_priors
from pyrovae.analysis.findings.statistics import Claim, cells, claimed, growth_of_gap, is_loose
from pyrovae.estimators.information import SATURATED


def claims(tree: xr.DataTree) -> list[Claim]:
    """The findings that this study can speak to: it needs several β, and for some of them several depths.

    Runs that diverged, or are not done yet, count for nothing: what rests on one of them is undecided.
    """
    images, information = tree["images"].to_dataset(), tree["information"].to_dataset()
    if "runs" in tree.root.children:
        done = tree.root["runs"].to_dataset()["status"] == "done"
        images, information = images.where(done), information.where(done)
    information = information.assign(loose=is_loose(tree["likelihood"].to_dataset()))
    distortion = images["distortion"]
    return [
        # Where another prior was swapped in, the axis only says under which one the pairs were trained.
        *(about_priors(images, information) if "prior" not in tree.attrs else ()),
        *about_gamma(images, information),
        *_about_beta(distortion),
        *_about_depth(distortion),
        *_about_saturation(distortion, information),
        *about_memorisation(images),
    ]


def _about_beta(distortion: xr.DataArray) -> Iterator[Claim]:
    betas = sorted(distortion.beta.values.tolist())
    for where, cell in cells(distortion, {"seed", "image", "split", "beta"}):
        if 1.0 in betas and betas[0] < 1:
            test = cell.sel(split="test")
            text = f"Lowering β from 1 to {betas[0]:g} lowers the test distortion"
            yield claimed(text, where, test.sel(beta=1.0), test.sel(beta=betas[0]))
        if 1.0 in betas and betas[-1] > 1:
            train = cell.sel(split="train")
            text = f"Raising β from 1 to {betas[-1]:g} underfits: the training distortion grows too"
            yield claimed(text, where, train.sel(beta=betas[-1]), train.sel(beta=1.0))


def _about_depth(distortion: xr.DataArray) -> Iterator[Claim]:
    if distortion.sizes.get("depth", 1) < 2:
        return
    shallow, deep = int(distortion.depth.min()), int(distortion.depth.max())
    lowest = float(distortion.beta.min())
    for where, cell in cells(distortion.sel(beta=lowest, split="test"), {"seed", "image", "depth"}):
        text = f"At β = {lowest:g} the {deep}-layer network has a lower test distortion than the {shallow}-layer one"
        yield claimed(text, where, cell.sel(depth=shallow), cell.sel(depth=deep))


def _about_saturation(distortion: xr.DataArray, information: xr.Dataset) -> Iterator[Claim]:
    """The central finding: where I can grow no more, test distortion that still falls can owe it only to the gap."""
    measured = information.assign(distortion=distortion.sel(split="test", drop=True)).sortby("beta")
    for where, cell in cells(measured, {"seed", "image", "beta"}):
        reached = _saturated(cell)
        if len(reached) < 2:
            text = "Test distortion goes on falling where I has reached log N, while G grows"
            missing = cell.beta.values[cell["mutual_information"].isnull().any("seed")]
            if len(missing):
                note = f"I is not measured in every run at {', '.join(f'β = {beta:g}' for beta in missing)}"
            else:
                note = f"it has at {f'β = {reached[0]:g} alone' if reached else 'no β'}, so there is nothing to compare"
            yield Claim(text, where, np.nan, np.nan, "images only", note=note)
            continue
        low, high = reached[0], reached[-1]
        growth = growth_of_gap(cell, "beta", low, high)
        text = (
            f"I reaches log N at β ≤ {high:g}; from there to β = {low:g} test distortion goes on falling, "
            f"while G grows by {growth[0]:.1f} ± {growth[1]:.1f} nats"
        )
        fall = claimed(text, where, cell["distortion"].sel(beta=high), cell["distortion"].sel(beta=low))
        yield replace(fall, growth=growth)


def _saturated(cell: xr.Dataset) -> list[float]:
    """The β, from the lowest up, at which every seed's mutual information has reached log N."""
    full = (cell["mutual_information"] > cell["log_n"] - SATURATED).all("seed").values
    return cell.beta.values[np.logical_and.accumulate(full)].tolist()
