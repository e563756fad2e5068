"""Several studies side by side."""

from collections.abc import Mapping
from typing import Any

import xarray as xr
from rich.table import Table

from pyrovae.analysis.report.all_runs import study_of, written
from pyrovae.study.grid import DATA_SETTINGS, DIMENSIONS, Study

#: Groups of the results in which studies are set side by side.
GROUPS = ("rate_distortion", "information", "likelihood", "memorisation")
#: Settings on which what D and R mean depends, beside those of the data.
_MEANING = (*DATA_SETTINGS, "likelihood", "noise_scale")


def joined(trees: Mapping[str, xr.DataTree]) -> xr.DataTree:
    """The results of some studies in one tree, with an axis ``study`` that tells them apart, by the names given here.

    Its other axes are those of all of them; where a study has none, it stands at the value that all of its runs share.
    Cells that no study has are missing.

    Example:
        >>> from pyrovae import Study
        >>> from pyrovae.store import schema
        >>> one = schema.empty(Study.of(name="one", beta=[0.1, 1]))
        >>> two = schema.empty(Study.of(name="two", beta=1, depth=[1, 3]))
        >>> sorted(joined({"one": one, "two": two})["rate_distortion"].sizes.items())
        [('beta', 2), ('depth', 2), ('seed', 1), ('split', 2), ('study', 2)]
    """
    axes = list(dict.fromkeys(str(axis) for tree in trees.values() for axis in tree["runs"].dims))
    placed = {name: _on(tree, axes) for name, tree in trees.items()}
    mixed = [axis for axis in axes if len({_kind(each, axis) for each in placed.values()}) > 1]
    names = xr.Variable("study", list(trees))
    groups = {}
    for group in GROUPS:
        parts = [
            data.assign_coords({axis: list(map(written, data[axis].values.tolist())) for axis in mixed})
            for data in (tree[group].to_dataset() for tree in placed.values())
        ]
        groups[group] = xr.concat(parts, names, join="outer", combine_attrs="override")
    return xr.DataTree.from_dict(groups)


def differences(trees: Mapping[str, xr.DataTree]) -> Table:
    """The settings in which studies differ, and the versions and devices that made them where these do."""
    settings = {name: _settings(tree) for name, tree in trees.items()}
    keys = list(dict.fromkeys(key for each in settings.values() for key in each))
    table = Table(title="where the studies differ in set-up")
    for heading in ("setting", *trees):
        table.add_column(heading)
    for key in keys:
        values = [each.get(key, "–") for each in settings.values()]
        if len(set(values)) > 1:
            table.add_row(key, *values)
    return table


def not_comparable(trees: Mapping[str, xr.DataTree]) -> str:
    """Where D and R of some studies are numbers of different things; empty where they are not.

    Example:
        >>> from pyrovae import Study
        >>> from pyrovae.store import schema
        >>> one, two = (schema.empty(Study.of(name="mine", train_images=images)) for images in ([256, 4096], 256))
        >>> not_comparable({"one": one, "two": two})
        'only rows of the same train_images compare: others are of different images or likelihoods'
    """
    values = {name: [_values(study_of(tree), name) for tree in trees.values()] for name in _MEANING}
    apart = [name for name, each in values.items() if not set.intersection(*each)]
    if apart:
        return f"D, −ELBO and log p(x) do not compare: the studies differ in {', '.join(apart)}"
    partly = [name for name, each in values.items() if any(other != each[0] for other in each)]
    if partly:
        return f"only rows of the same {' and '.join(partly)} compare: others are of different images or likelihoods"
    return ""


def _on(tree: xr.DataTree, axes: list[str]) -> xr.DataTree:
    """The groups of a study over axes of which it may lack some."""
    shared = {DIMENSIONS.get(key, key): value for key, value in study_of(tree).base.model_dump().items()}
    lacking = {axis: [shared[axis]] for axis in axes if axis not in tree["runs"].dims}
    return xr.DataTree.from_dict({group: tree[group].to_dataset().expand_dims(lacking) for group in GROUPS})


def _kind(tree: xr.DataTree, axis: str) -> str:
    """The kind of values along an axis: numbers of either kind are of one."""
    kind = tree[GROUPS[0]][axis].dtype.kind
    return "number" if kind in "iuf" else kind


def _settings(tree: xr.DataTree) -> dict[str, str]:
    """All settings of a study as text, an axis with all of its values, and what made its numbers."""
    study = study_of(tree)
    told: dict[str, Any] = study.settings()
    told |= {f"measure.{key}": value for key, value in told.pop("measure").items()}
    del told["name"], told["description"]
    made = {name: _made(tree, name) for name in ("device", "versions")}
    return {key: _text(value) for key, value in told.items()} | made


def _values(study: Study, setting: str) -> set[Any]:
    """The values that the runs of a study have of a setting."""
    return set(study.axes.get(setting, (getattr(study.base, setting),)))


def _text(value: Any) -> str:
    return ", ".join(map(written, value)) if isinstance(value, list) else written(value)


def _made(tree: xr.DataTree, name: str) -> str:
    return "; ".join(sorted(set(tree["runs"].to_dataset()[name].values.flatten().tolist()) - {""}))
