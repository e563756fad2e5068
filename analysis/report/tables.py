"""What a study found, as text for a terminal."""

from collections.abc import Iterator
from itertools import product
from math import floor, isnan, log10
from typing import Any

import xarray as xr
from rich.table import Table

from pyrovae.analysis.diagnosis.diagnose import Diagnosis
from pyrovae.analysis.findings.statistics import Claim, is_loose
from pyrovae.analysis.report.all_runs import study_of, written
from pyrovae.estimators.information import SATURATED
from pyrovae.estimators.likelihood import MANY
from pyrovae.study.grid import DATA_SETTINGS, DIMENSIONS

#: Marks a bound that may be loose.
LOOSE = "†"
_TEST = {"rate": "test_rate", "rate_se": "test_rate_se"}


def measured(tree: xr.DataTree) -> list[Table]:
    """All tables of what was measured, those left out that would be empty."""
    tables = [rate_distortion(tree), levels(tree), information(tree), likelihood(tree), memorisation(tree)]
    return [table for table in tables if table is not None]


def rate_distortion(tree: xr.DataTree) -> Table:
    """D and R on train and test for every β and every value of the axes other than seed, means over seeds.

    The errors are standard errors over images, averaged over seeds.
    """
    data = tree["rate_distortion"].to_dataset().mean("seed", skipna=True)
    axes = _axes(data["rate"])
    table = Table(title=f"nats per image, ± standard error over images, mean over seeds{_kinds(tree)}")
    frame = data.to_dataframe().dropna(how="all").reset_index()
    headings = [f"{name} {split}" for name in "DR" for split in ("train", "test")]
    for heading in [*axes, *headings, "−ELBO test"]:
        table.add_column(heading, justify="right")
    for _, row in frame.groupby(axes, sort=True):
        sides = row.set_index("split")
        cells = [_with_error(sides.loc[split], name) for name in ("distortion", "rate") for split in ("train", "test")]
        table.add_row(*(written(row[axis].iloc[0]) for axis in axes), *cells, _nats(-sides.loc["test", "elbo"]))
    return table


def likelihood(tree: xr.DataTree) -> Table:
    """Bounds of log p(x) of the test images, for every β and every value of the axes other than seed, means over seeds.

    The importance-weighted bound, marked where k̂ is above its threshold for many images, with that share and the
    effective number of draws; where there are any, the bound by annealing, how far it is above the other on the same
    images, its acceptance, and the gap between bounds from both sides on simulated images.
    """
    found = tree["likelihood"].to_dataset()
    data = found.mean("seed", skipna=True)
    annealed = bool(found["annealed_log_likelihood"].notnull().any())
    data["loose"] = is_loose(found).any("seed")
    title = "log p(x) of test images, lower bounds, nats per image"
    if data["loose"].any():
        title += f"; {LOOSE} k̂ is high for more than {MANY:.0%} of the images: the bound may be loose by far"
    table = Table(title=title)
    axes = _axes(data["log_likelihood"])
    headings = ["by weighting", "high k̂", "effective draws"]
    headings += ["by annealing", "more by", "acceptance", "gap, simulated"] * annealed
    for heading in [*axes, *headings]:
        table.add_column(heading, justify="right")
    for place, cell in _cells(data, axes):
        row = [
            _with_error(cell, "log_likelihood") + (LOOSE if cell["loose"] else ""),
            _optional(cell, "high_pareto_k", ".0%"),
            _optional(cell, "effective_draws", ".1f"),
        ]
        if annealed:
            row += [_with_error(cell, name) for name in ("annealed_log_likelihood", "annealed_gain")]
            row += [_optional(cell, "acceptance", ".2f"), _with_error(cell, "sandwich_gap")]
        table.add_row(*map(written, place), *row)
    return table


def memorisation(tree: xr.DataTree) -> Table | None:
    """Test images as the decoder of infinite capacity has them, beside the learned one; None where it was not measured.

    Means over images and seeds, for every β and every value of the axes other than seed.
    """
    data = tree["memorisation"].to_dataset().mean("seed", skipna=True).sel(split="test", drop=True)
    if data["perplexity"].isnull().all():
        return None
    learned = tree["rate_distortion"].to_dataset()[["distortion", "distortion_se"]].mean("seed", skipna=True)
    data = data.merge(learned.sel(split="test", drop=True))
    table = Table(title="test images: the learned decoder and one of infinite capacity, ± standard error over images")
    axes = _axes(data["perplexity"])
    headings = ["D learned", "D memorising", "ε", "infinite at ε = 0", "images mixed"]
    headings += ["nearest training image, learned", "memorising"]
    for heading in [*axes, *headings]:
        table.add_column(heading, justify="right")
    for place, cell in _cells(data, axes):
        table.add_row(
            *map(written, place),
            _with_error(cell, "distortion"),
            _with_error(cell, "memorising_distortion"),
            _optional(cell, "mixing_share", ".2g"),
            _optional(cell, "infinite_share", ".0%"),
            _optional(cell, "perplexity", ".1f"),
            _distance(cell, "reconstruction_distance"),
            _distance(cell, "memorising_distance"),
        )
    return table


def diagnosis(found: Diagnosis) -> Table:
    """A guide beside the exact posterior of each image.

    Of the chains: the largest R̂ and the fewest effective draws over latents, and divergences. Of the guide: k̂ of its
    weights; over latents the largest difference of the means, in standard deviations of the posterior, and the least
    and the largest ratio of the standard deviations; and log p(x), the ELBO and both parts of the gap between them.
    """
    title = "q(z|x) beside the exact posterior p(z|x), in nats where no other unit is told"
    weights = {symbol: found.summary.attrs.get(name) for name, symbol in (("beta", "β"), ("gamma", "γ"))}
    others = [f"{symbol} = {weight:g}" for symbol, weight in weights.items() if weight not in (None, 1)]
    if others:
        title += f"\nthe guide was trained at {', '.join(others)} and aims at another q: amortisation has that in it"
    table = Table(title=title)
    headings = ["image", "R̂", "effective draws", "divergences", "k̂", "means differ by", "σ(q) / σ(p)"]
    for heading in [*headings, "log p(x)", "ELBO", "approximation", "amortisation"]:
        table.add_column(heading, justify="right")
    summary = found.summary
    for image in summary["image"].values:
        cell = summary.sel(image=image)
        table.add_row(
            str(image),
            f"{cell['rhat'].max():.2f}",
            f"{cell['ess'].min():.0f}",
            f"{cell['diverging']:.0f}",
            f"{cell['pareto_k']:.2f}",
            f"{abs(cell['shift']).max():.1f} σ(p)",
            f"{cell['scale'].min():.2f} to {cell['scale'].max():.2f}",
            *(_optional(cell, name, ".1f") for name in ("log_likelihood", "elbo")),
            *(_with_error(cell, name) for name in ("approximation", "amortisation")),
        )
    return table


def difficulty(tree: xr.DataTree) -> Table:
    """How hard the generalization problem is, for every value of the axes that it depends on.

    The distances are means over images, ± standard error: from an image to the nearest training image, from a
    training image to the nearest other one, in pixels and factors of variation that run over [0, 1].
    """
    data = tree["difficulty"].to_dataset()
    axes = [str(dim) for dim in data["images"].dims if dim in {DIMENSIONS.get(name, name) for name in DATA_SETTINGS}]
    data = data.max([dim for dim in data.dims if dim not in (*axes, "split")])  # all the same, or missing
    table = Table(title="distance to the nearest training image, ± standard error over images")
    spaces = [space for space in ("pixel", "factor") if data[f"{space}_distance"].notnull().any()]
    sides = [f"{space}s, {split}" for space in spaces for split in ("train", "test")]
    for heading in [*axes, "training images", "test images", *sides]:
        table.add_column(heading, justify="right")
    for place, cell in _cells(data, axes):
        sizes = [f"{cell['images'].sel(split=split).item():,.0f}" for split in ("train", "test")]
        distances = [
            _distance(cell.sel(split=split), f"{space}_distance") for space in spaces for split in ("train", "test")
        ]
        table.add_row(*map(written, place), *sizes, *distances)
    return table


def levels(tree: xr.DataTree) -> Table | None:
    """What each latent site adds to the rate, on train and test, means over seeds; None where there is one alone.

    That is E[log q − log p] of the site, which need not be a KL divergence and may be negative: only the sum is one.
    """
    if "levels" not in tree.children or tree["levels"].sizes["level"] < 2:
        return None
    data = tree["levels"].to_dataset().mean("seed", skipna=True)
    axes = [*_axes(data["rate"].isel(level=0, drop=True)), "level"]
    table = Table(
        title="what each latent site adds to R, E[log q − log p], nats per image, ± standard error over images"
    )
    for heading in [*axes, "R train", "R test"]:
        table.add_column(heading, justify="right")
    for place, cell in _cells(data, axes):
        sides = [cell.sel(split=split) for split in ("train", "test")]
        table.add_row(*map(written, place), *(_with_error(each, "rate") for each in sides))
    return table


def information(tree: xr.DataTree) -> Table:
    """Where the rate goes, for every β and every value of the axes other than seed, means over seeds.

    Mutual information I and prior gap G over the training set, rates of test images under p(z) and under q(z), and the
    number of active units. R and the rest are means over as many images as the study says for either, so that
    R = I + G holds within their errors.
    """
    codes = tree["information"].to_dataset()
    full = (codes["mutual_information"] > codes["log_n"] - SATURATED).all("seed")
    cells = codes.mean("seed", skipna=True).assign(full=full)
    rates = tree["rate_distortion"].to_dataset()[["rate", "rate_se"]].mean("seed", skipna=True)
    table = Table(
        title="nats per image; R = I + G within errors"
        + (
            " (not where each image is left out)"
            if "aggregate_leave_one_out" in str(tree.root.attrs.get("study"))
            else ""
        )
        + "; * saturated: I within 0.1 nats of log N in every seed"
    )
    axes = _axes(cells["prior_gap"])
    for heading in [*axes, "log N", "R train", "I train", "G train", "R test", "R test under q(z)", "active units"]:
        table.add_column(heading, justify="right")
    frame = xr.merge([cells, rates.sel(split="train", drop=True), rates.sel(split="test", drop=True).rename(_TEST)])
    rows = frame.to_dataframe().dropna(subset="log_n").reset_index().set_index(axes).sort_index()
    for place, row in rows.iterrows():
        saturated = "*" if row["full"] else ""
        table.add_row(
            *map(written, place if isinstance(place, tuple) else [place]),
            f"{row['log_n']:.2f}",
            _with_error(row, "rate"),
            f"{row['mutual_information']:.2f} ± {row['mutual_information_se']:.2f}{saturated}",
            _with_error(row, "prior_gap"),
            _with_error(row, "test_rate"),
            _with_error(row, "marginal_rate"),
            f"{row['active_units']:.1f}",
        )
    return table


def claims(found: list[Claim]) -> list[str]:
    """One line a claim, with its numbers or the reason why there are none."""
    return [
        f"{claim.verdict:>13}: {claim.text}{f' ({claim.where})' if claim.where else ''}: {effect(claim)}"
        for claim in found
    ]


def effect(claim: Claim) -> str:
    """The numbers of a claim, or the reason why there are none."""
    if claim.note:
        return claim.note
    return f"{_rounded(claim.effect, claim.error)} {claim.unit}, 95% over {claim.over}"


def provenance(tree: xr.DataTree) -> list[Table]:
    """What made the numbers of a study, and those of its later measurements, by cohort.

    The runs of a cohort, code and versions, device, threads, how it was trained, what D and R are, and the process
    that measured them. What changed while a cohort was trained is told with the step at which it did.
    """
    tables = []
    facts = {"trained": "mode", "device": "device", "threads": "threads", "D": "distortion_kind", "R": "rate_kind"}
    facts |= {"by": "worker"}
    for name in ("", *later(tree)):
        title = f"what made the numbers of {study_of(tree).name}{f', measured again as {name}' if name else ''}"
        table = Table(title=title)
        for heading in ("cohort", "runs", *facts, "seconds of training", "code and versions"):
            table.add_column(heading)
        runs = (tree[name] if name else tree)["runs"].to_dataset().to_dataframe().reset_index()
        axes = list(tree["runs"].dims)
        for cohort, each in runs[runs["cohort"] != ""].groupby("cohort"):
            place = "; ".join(f"{axis} {', '.join(dict.fromkeys(map(written, each[axis])))}" for axis in axes)
            told = ("; ".join(sorted(set(each[fact]))) for fact in (*facts.values(), "versions"))
            *details, versions = told
            seconds = each["seconds"].max()
            table.add_row(cohort, place, *details, "–" if isnan(seconds) else f"{seconds:.0f}", versions)
        tables.append(table)
    return tables


def later(tree: xr.DataTree) -> list[str]:
    """The later measurements of a study, in their order."""
    found = [child for child in tree.children if child.startswith("evaluation_")]
    return sorted(found, key=lambda child: int(child.rsplit("_", 1)[1]))


def _kinds(tree: xr.DataTree) -> str:
    """What D and R are, where it is something other than the negative log-likelihood and a closed form."""
    if "runs" not in tree.children:
        return ""
    runs = tree["runs"].to_dataset()
    told = [
        f"; {symbol} {'is' if (runs[name] == kind).all() else 'is in part'} {text}"
        for symbol, name, kind, text in (
            ("D", "distortion_kind", "cross-entropy", "a cross-entropy, because pixels are grey"),
            ("R", "rate_kind", "Monte Carlo", "Monte Carlo"),
        )
        if (runs[name] == kind).any()
    ]
    return "".join(told)


def _cells(data: xr.Dataset, axes: list[str]) -> Iterator[tuple[tuple[Any, ...], xr.Dataset]]:
    """The data at every combination of values of some axes at which there are any."""
    for place in product(*(data[axis].values.tolist() for axis in axes)):
        cell = data.sel(dict(zip(axes, place, strict=True)))
        if any(each.notnull().any() for name, each in cell.items() if name != "loose"):
            yield place, cell


def _rounded(effect: float, error: float) -> str:
    """An effect and its error, down to the second digit of the error, one place at the least.

    Example:
        >>> _rounded(0.0123, 0.0045), _rounded(-12.34, 6.7)
        ('+0.0123 ± 0.0045', '-12.3 ± 6.7')
    """
    places = max(1, 1 - floor(log10(error))) if error > 0 else 1
    return f"{effect:+.{places}f} ± {error:.{places}f}"


def _axes(array: xr.DataArray) -> list[str]:
    """What an array runs over beside the split: the axes of the grid, β last, then what tells measurements apart."""
    last = ["beta", "measured"]
    return [
        *(str(dim) for dim in array.dims if dim not in ("split", *last)),
        *(dim for dim in last if dim in array.dims),
    ]


def _distance(cell: xr.Dataset, name: str) -> str:
    """A distance with its error, or a dash where there is none, as where a set has no known factors."""
    value, error = cell[name].item(), cell[f"{name}_se"].item()
    return "–" if isnan(value) else f"{value:.3g} ± {error:.1g}"


def _optional(cell: xr.Dataset, name: str, form: str) -> str:
    value = cell[name].item()
    return "–" if isnan(value) else format(value, form)


def _with_error(row: Any, name: str) -> str:
    value, error = float(row[name]), float(row[f"{name}_se"])
    return "–" if isnan(value) else f"{_nats(value)} ± {_nats(error)}"


def _nats(value: float) -> str:
    """A number to a tenth, or to three digits where it is beyond all measure."""
    return f"{value:.1f}" if abs(value) < 1e9 else f"{value:.3g}"
