"""Comparison of several studies: their numbers in one tree, and the settings in which they differ."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import xarray as xr
from rich.table import Table

from pyrovae.analysis.report.all_runs import shared_settings, study_of
from pyrovae.analysis.report.columns import written
from pyrovae.store import schema
from pyrovae.store.results import Evaluation
from pyrovae.study import DATA_SETTINGS, Study

#: Settings that decide what D and R mean.
_MEANING = (*DATA_SETTINGS, "likelihood", "noise_scale")
#: The name of a package or module in the versions of a run, and the checksum of its source.
_SOURCE = re.compile(r"([\w.]+)(?: [\w.+]+)? \(source (\w+)\)")


class Comparison(Evaluation):
    """The numbers of some studies side by side, without the values per image and the pictures that each of them has.

    Args:
        trees: the results of each study, by its label.
    """

    def __init__(self, trees: Mapping[str, xr.DataTree]) -> None:
        super().__init__(joined(trees), Path())

    def images(self, /, **at: Any) -> xr.Dataset:
        """Nothing."""
        return xr.Dataset()

    def pictures(self, group: str, /, **at: Any) -> xr.Dataset:
        """Nothing."""
        return xr.Dataset()


def joined(trees: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """The declared numbers of some studies in one tree, and what D and R are, with an axis ``study`` of their labels.

    Its other axes are those of all studies; a study without an axis has the value that all of its runs share. Cells
    that no study has are missing.

    Example:
        >>> from pyrovae import Study
        >>> one = schema.empty(Study(name="one", beta=[0.1, 1]).resolved())
        >>> two = schema.empty(Study(name="two", beta=1, depth=[1, 3]).resolved())
        >>> sorted(joined({"one": one, "two": two})["rate_distortion"].sizes.items())
        [('beta', 2), ('depth', 2), ('seed', 1), ('split', 2), ('study', 2)]
    """
    axes = list(dict.fromkeys(str(axis) for tree in trees.values() for axis in tree["runs"].dims))
    placed = {name: _on(tree, axes) for name, tree in trees.items()}
    mixed = [axis for axis in axes if len({_kind(groups["runs"][axis]) for groups in placed.values()}) > 1]
    declared = dict.fromkeys(each.group for tree in trees.values() for each in schema.quantities(tree))
    kinds = _concatenated(placed, "runs", mixed)[["distortion_kind", "rate_kind"]]
    return xr.DataTree.from_dict({"runs": kinds} | {group: _concatenated(placed, group, mixed) for group in declared})


def differences(trees: Mapping[str, xr.DataTree]) -> Table:
    """The settings, versions and devices in which studies differ."""
    settings = {name: _settings(tree) for name, tree in trees.items()}
    keys = list(dict.fromkeys(key for each in settings.values() for key in each))
    table = Table(title="differences between the studies")
    for heading in ("setting", *trees):
        table.add_column(heading)
    for key in keys:
        values = [each.get(key, "–") for each in settings.values()]
        if len(set(values)) > 1:
            table.add_row(key, *values)
    return table


def cautions(trees: Mapping[str, xr.DataTree]) -> Iterator[str]:
    """Why D and R of some studies may not compare.

    Code matters where its source differs: that of pyrovae, or of a module of the user's own that several studies use.

    Example:
        >>> from pyrovae import Study
        >>> from pyrovae.store import schema
        >>> one, two = (schema.empty(Study(name="mine", train_images=images)) for images in ([256, 4096], 256))
        >>> list(cautions({"one": one, "two": two}))
        ['compare only rows with the same train_images: others have different images or likelihoods']
    """
    if different := _different_data(trees):
        yield different
    sources: dict[str, set[str]] = {}
    for tree in trees.values():
        for name, source in _SOURCE.findall(_provenance(tree, "versions")):
            sources.setdefault(name, set()).add(source)
    if changed := [name for name, each in sources.items() if len(each) > 1]:
        yield f"the code of {' and '.join(changed)} changed between these runs, which may be why numbers differ"


def _different_data(trees: Mapping[str, xr.DataTree]) -> str:
    """Why D and R of some studies do not compare; empty if they do."""
    values = {name: [_values(study_of(tree), name) for tree in trees.values()] for name in _MEANING}
    different = [name for name, each in values.items() if not set.intersection(*each)]
    if different:
        return f"D, −ELBO and log p(x) do not compare: the studies differ in {', '.join(different)}"
    partly = [name for name, each in values.items() if any(other != each[0] for other in each)]
    if partly:
        return f"compare only rows with the same {' and '.join(partly)}: others have different images or likelihoods"
    return ""


def _on(tree: xr.DataTree, axes: list[str]) -> dict[str, xr.Dataset]:
    """The numbers of a study by group, over axes of which it may lack some."""
    shared = shared_settings(study_of(tree))
    missing = {axis: [shared.get(axis)] for axis in axes if axis not in tree["runs"].dims}
    groups = dict.fromkeys(["runs", *(each.group for each in schema.quantities(tree))])
    return {group: tree[group].to_dataset().expand_dims(missing) for group in groups}


def _concatenated(placed: Mapping[str, Mapping[str, xr.Dataset]], group: str, mixed: list[str]) -> xr.Dataset:
    """A group of the studies that have it; values of axes that mix numbers and text become text."""
    parts = {name: groups[group] for name, groups in placed.items() if group in groups}
    as_text = [
        data.assign_coords({axis: list(map(written, data[axis].values.tolist())) for axis in mixed})
        for data in parts.values()
    ]
    return xr.concat(as_text, xr.Variable("study", list(parts)), join="outer", combine_attrs="override")


def _kind(axis: xr.DataArray) -> str:
    """Whether values along an axis are numbers, or another type."""
    return "number" if axis.dtype.kind in "iuf" else axis.dtype.kind


def _settings(tree: xr.DataTree) -> dict[str, str]:
    """All settings of a study as text, an axis with all of its values, and what made its numbers."""
    study = study_of(tree)
    settings: dict[str, Any] = study.settings()
    settings |= {f"measure.{key}": value for key, value in settings.pop("measure").items()}
    del settings["name"], settings["description"]
    provenance = {name: _provenance(tree, name) for name in ("device", "versions")}
    return {key: _text(value) for key, value in settings.items()} | provenance


def _values(study: Study, setting: str) -> set[Any]:
    """The values that the runs of a study have of a setting."""
    value = study.settings().get(setting)
    return set(value) if isinstance(value, list) else {value}


def _text(value: Any) -> str:
    return ", ".join(map(written, value)) if isinstance(value, list) else written(value)


def _provenance(tree: xr.DataTree, name: str) -> str:
    return "; ".join(sorted(set(tree["runs"].to_dataset()[name].values.flatten().tolist()) - {""}))
