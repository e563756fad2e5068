"""The results of a study: the records of its runs in a folder, and the tree of numbers assembled from them."""

import hashlib
import json
import shlex
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from pyrovae import parts
from pyrovae.data import memory as memory_data
from pyrovae.errors import InputError
from pyrovae.estimators import pareto_k_threshold
from pyrovae.measures.declared import shipped
from pyrovae.measures.measure import PER_IMAGE_DIMS
from pyrovae.programs.origin import Origin
from pyrovae.programs.pair import Pair
from pyrovae.store import layout, records, schema
from pyrovae.store.checkpoint import Checkpoint, checkpoint_mismatch, restore
from pyrovae.store.condensed import condensed
from pyrovae.store.layout import EVALUATIONS, IMAGES, RunFolder, settings_files
from pyrovae.store.records import Record
from pyrovae.store.schema import Grid
from pyrovae.study import Measure, Run, Study, check_trust, growth, key_of
from pyrovae.study.files import shipped_names, to_yaml
from pyrovae.study.grid import plain, values_of
from pyrovae.system import atomic, memory
from pyrovae.system.provenance import history

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from pyrovae.analysis.findings.best import Best
    from pyrovae.analysis.findings.verdicts import Verdicts

#: (run, event shape) → a pair with initial weights.
MakePair = Callable[[Run, torch.Size], Pair]


class Evaluation:
    """The numbers of the runs of a study: those measured after training, or those of a later evaluation.

    Attributes:
        tree: the numbers, a group for each measure, over the axes of the grid.
        folder: of the study.
        name: of a later evaluation; empty for the study's own.
    """

    def __init__(self, tree: xr.DataTree, folder: Path, name: str = "") -> None:
        self.tree = tree
        self.folder = folder
        self.name = name

    def images(self, /, **at: Any) -> xr.Dataset:
        """The values per image of some runs, ``[*axes, split, image]``, with its class, ``label``, if data have any.

        They are missing where a run has none. After a swap of the prior, ``joint`` is R + D under the prior that each
        pair was trained with.

        Args:
            at: a value, or a list of values, along some axes of the grid, such as ``beta=1, depth=[1, 3]``; all of the
                others by default.

        Raises:
            InputError: an axis or a value is not in the grid, the values do not fit into memory, or a file is damaged.

        Kept results, which are opened by the name of a study, have fewer values instead, with the same means and the
        same errors of the means.
        """
        keys = self._select(at)
        if self.is_kept:
            return self.tree[IMAGES].to_dataset().sel({axis: keys[axis] for axis in self.tree["runs"].dims})
        found = {cell: records.load_images(file) for cell, file in self._files(keys)}
        names = list(dict.fromkeys(name for each in found.values() for name in each))
        images = max((_extent(values) for each in found.values() for values in each.values()), default=0)
        splits = Study.of_yaml(self.tree.root.attrs["study"]).splits
        shape = (*keys.shape, len(splits), images)
        memory.check_memory(8 * len(names) * np.prod(shape, dtype=float), f"the values per image of {keys.size:,} runs")
        values = {name: np.full(shape, np.nan) for name in names}
        for cell, each in found.items():
            for name, known in each.items():
                values[name][cell][: len(known), : known.shape[-1]] = known[: len(splits), :images]
        dims = (*map(str, keys.dims), *PER_IMAGE_DIMS)
        variables = {name: (dims, each, self._attributes(name)) for name, each in values.items()}
        data = xr.Dataset(variables, {**keys.coords, "split": list(splits), "image": range(images)})
        if "prior" in self.tree.attrs:
            trained = self._before_swap().images(**at)
            data = data.assign(joint=trained["distortion"] + trained["rate"])
        return data.set_coords("label") if "label" in data else data

    def pictures(self, group: str, /, **at: Any) -> xr.Dataset:
        """The pictures of some runs, such as the group "reconstructions"; ``at`` and errors as for `images`.

        Runs without pictures, or with pictures of another size, are missing: NaN, or 0 where pictures are bytes. The
        dataset is empty if no run has any.
        """
        keys = self._select(at)
        variables: dict[str, xr.Variable] = {}
        for cell, file in self._files(keys):
            for name, picture in records.load_pictures(file, group).items():
                if name not in variables:
                    shape, missing = (*keys.shape, *picture.shape), 0 if picture.dtype.kind == "u" else np.nan
                    memory.check_memory(np.prod(shape, dtype=float) * picture.dtype.itemsize, f"{group}/{name}")
                    values = np.full(shape, missing, picture.dtype)
                    variables[name] = xr.Variable([*map(str, keys.dims), *picture.dims], values, picture.attrs)
                if variables[name].shape[keys.ndim :] == picture.shape:
                    variables[name].values[cell] = picture.values
        return xr.Dataset(variables, keys.coords)

    def findings(self) -> "Verdicts":
        """The verdicts on the findings that the study can test: objects, which ``.frame()`` puts into a table."""
        return _above("analysis.findings").findings(self)

    def best(self, axis: str, by: str = "test R + D", **at: Any) -> "list[Best]":
        """The best values along an axis, a set with its verdict for every other setting: `best` of the findings.

        Args:
            axis: the axis, such as "prior" or "beta".
            by: "test", "train" or "validation", and one of "D", "R", "R + D" and "log p(x)"; "validation" alone means
                by R + D there.
            at: values at which other axes are fixed.

        Raises:
            InputError: the study has no such axis with several values, or ``by`` is unknown.
        """
        return _above("analysis.findings.best").best(self, axis, by, **at)

    def caveats(self) -> list[str]:
        """What a reader of the numbers has to know, one line each, such as runs that had not converged."""
        return _above("analysis.findings.caveats").caveats(self.tree)

    def table(self, group: str | None = None) -> "pd.DataFrame":
        """All numbers, one row for each run; or those of a group such as "rate_distortion".

        Raises:
            InputError: there is no such group.
        """
        found: pd.DataFrame = _above("analysis.report.export").frame(self.tree)
        if group is None:
            return found
        columns = [name for name in found.columns if "/" not in name or name.startswith(f"{group}/")]
        if all("/" not in name for name in columns):
            valid = dict.fromkeys(name.partition("/")[0] for name in found.columns if "/" in name)
            raise InputError(f"unknown group {group!r}; valid: {', '.join(valid)}")
        return found[columns].rename(columns=lambda name: name.removeprefix(f"{group}/"))

    def plot(self, name: str, ax: "Axes | None" = None) -> "Axes":
        """Draws a figure of the report by its name, such as "rate_distortion", perhaps on given axes.

        Raises:
            InputError: there is no such figure, or nothing that it could show.
        """
        return _above("analysis.figures").plot(self, name, ax)

    def save_figures(
        self, out: str | Path, *names: str, width: float = 6.9, formats: Sequence[str] = ("pdf",), dark: bool = False
    ) -> list[Path]:
        """Writes figures for a paper or a talk: text of 7 to 9 points at their final size, and embedded fonts.

        Args:
            out: the folder.
            names: of the figures; by default, all for which there are results.
            width: in inches; a narrow figure has a panel for one β only.
            formats: "pdf", "png" or "svg".
            dark: whether to draw light on dark.

        Returns:
            The files.

        Raises:
            InputError: there is no such figure or format, or nothing that it could show.
        """
        files: list[Path] = _above("analysis.figures").save_for_print(
            self, Path(out), names, formats=formats, width=width, dark=dark
        )
        return files

    @property
    def is_kept(self) -> bool:
        """Whether these are numbers without weights, opened by the name of the study."""
        return IMAGES in self.tree.children

    @property
    def measure(self) -> Measure:
        """The settings of the measurement."""
        if "measure" in self.tree.attrs:
            return Measure.model_validate_json(self.tree.attrs["measure"])
        return Study.of_yaml(self.tree.root.attrs["study"]).measure

    def _before_swap(self) -> "Evaluation":
        """The evaluation with the priors of training: the one with the same settings, else the study's own."""
        for name, tree in self.tree.root[EVALUATIONS].children.items():
            if tree.attrs["measure"] == self.tree.attrs["measure"] and not {"prior", "only"} & tree.attrs.keys():
                return Evaluation(tree, self.folder, name)
        return Evaluation(self.tree.root, self.folder)

    def _select(self, at: Mapping[str, Any]) -> xr.DataArray:
        """The keys of the runs at some coordinates; empty where a run has no record."""
        runs = self.tree["runs"].to_dataset()
        keys = runs["key"].where(runs["step"] >= 0, "")
        at = {axis: plain(value) for axis, value in at.items()}
        for axis, value in at.items():
            if axis not in keys.dims:
                raise InputError(f"unknown axis '{axis}'; valid: {', '.join(map(str, keys.dims))}")
            for each in values_of(value):
                if each not in (known := keys[axis].values.tolist()):
                    raise InputError(f"{axis}: expected one of {known}, got {each!r}")
        return keys.sel({axis: list(value) if isinstance(value, tuple) else value for axis, value in at.items()})

    def _files(self, keys: xr.DataArray) -> Iterator[tuple[tuple[int, ...], Path]]:
        """The records of some runs, with their places; none of kept results."""
        for cell, key in np.ndenumerate(keys.values):
            if key and not self.is_kept:
                yield cell, RunFolder.of(self.folder, key).record(self.name)

    def _attributes(self, name: str) -> dict[str, Any]:
        """The attributes of a value per image."""
        declared = [each for measure in shipped() for each in measure.quantities if each.name == name]
        found = declared[0].attributes(declared[0].variable) if declared else {}
        return found | ({"threshold": pareto_k_threshold(self.measure.particles)} if name == "pareto_k" else {})


class Results(Evaluation):
    """The results of a study in its folder.

    Attributes:
        folder: contains study.yaml, runs/ with a folder for each run, results.nc, figures/ and report.html; of kept
            results, only the last two, if they are drawn.
        study: the study, with all defaults filled in.
        tree: ``/rate_distortion`` over split and the axes of the grid, ``/levels`` with the rate of each latent site,
            ``/information`` with mutual information and prior gap, ``/likelihood`` with bounds on log p(x),
            ``/memorisation`` with the infinite-capacity decoder, ``/difficulty`` with sizes and distances to the
            training images, ``/curves`` over steps, ``/runs`` with the status of every run, and
            ``/evaluations/NAME`` with the same groups for each later evaluation. Units are nats per image unless
            ``attrs["units"]`` says otherwise.
    """

    def __init__(
        self,
        folder: Path,
        study: Study,
        make_pair: MakePair,
        trust: Collection[str] | None = None,
        kept: xr.DataTree | None = None,
    ) -> None:
        self.study = study
        self._make_pair = make_pair
        self._trust = trust
        memory_data.attach(folder)
        super().__init__(_tree(folder, study, trust) if kept is None else kept, folder)

    @classmethod
    def open(cls, folder: str | Path, make_pair: MakePair, trust: Collection[str] = ()) -> Self:
        """Opens the results in a folder, or those that are kept under the name of a study.

        Args:
            trust: modules whose code may run.

        Raises:
            InputError: the folder contains no study, and no results are kept under this name.
        """
        if file := layout.kept_for(folder):
            kept = schema.load(file)
            return cls(Path(folder), Study.of_yaml(kept.attrs["study"]), make_pair, trust, kept)
        return cls(Path(folder), study_in(Path(folder)), make_pair, trust)

    @classmethod
    def create(cls, folder: str | Path, study: Study, make_pair: MakePair) -> Self:
        """Opens the results of a study, in a folder that is new, or holds it or another part of it.

        Nothing is written before `save_study`.

        Raises:
            InputError: the folder contains a study with other settings, or its name is not UTF-8.
        """
        folder = Path(folder)
        atomic.check_name(folder)
        if (folder / "study.yaml").exists() and (differences := growth.conflicts(study_in(folder), study)):
            raise InputError(
                f"{folder}: expected this study or a part of it, got other settings: {'; '.join(differences)}; choose "
                "another --out, or give both values as a list to have them side by side"
            )
        return cls(folder, study, make_pair)

    def __repr__(self) -> str:
        statuses = self.tree["runs"].to_dataset()["status"].values.ravel().tolist()
        counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
        axes = "; ".join(f"{axis} {', '.join(map(str, values))}" for axis, values in self.study.axes.items())
        later = "".join(f"\n  evaluation {name}" for name in self.evaluations)
        place = "kept without weights" if self.is_kept else f"in {self.folder}"
        return f"Results of '{self.study.name}' {place}: {counts}\n  {axes}{later}"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(repr(self))}</pre>{self.table('rate_distortion').to_html(index=False, max_rows=20)}"

    def grow(self, *, quiet: bool = False, device: str = "auto", **more: Any) -> Self:
        """Grows the study in its folder, trains what is missing, and returns its results.

        Args:
            quiet, device: as in `pyrovae.run`.
            more: further values along an axis, such as ``seed=3`` or ``seed=[3, 4]``; or other settings, such as
                ``steps=2000``.

        Raises:
            InputError: a setting would change finished runs.
        """
        check_trust(self.study.settings(), self._trust or ())
        if self.is_kept:
            raise without_weights(self.folder)
        grown = study_in(self.folder)  # it may have grown since these results were opened
        known = {**grown.base.model_dump(), **grown.base.settings}
        axes = {
            key: list(dict.fromkeys([*grown.axes.get(key, [known[key]] if key in known else []), *values_of(value)]))
            for key, value in more.items()
            if key in grown.axes or isinstance(value, list | tuple)
        }
        study = grown.replace(**{**more, **axes})
        return _above("runner.run").run(study, self.folder, quiet=quiet, device=device)

    def swap_prior(self, prior: Any, *, quiet: bool = False, **settings: int) -> Evaluation:
        """Replaces the prior of each pair by another one, fitted to its frozen encodings, and evaluates R and G.

        Args:
            prior: a name, perhaps with settings, such as "mixture(components=10)" or
                ``{"name": "mixture", "components": 10}``.
            settings: of `Measure` that differ from those of the study.

        Returns:
            The evaluation, which `evaluations` then has, too.

        Raises:
            InputError: the study is not finished, or the prior is unknown or does not fit.
        """
        name, trust = Run(prior=prior).prior, self._trust or ()
        results, found = _above("runner.remeasure").reevaluate(
            self.folder, prior=name, trust=trust, quiet=quiet, **settings
        )
        self.tree = results.tree
        return found

    @property
    def evaluations(self) -> dict[str, Evaluation]:
        """The later evaluations, by name."""
        trees = self.tree.children[EVALUATIONS].children if EVALUATIONS in self.tree.children else {}
        return {name: Evaluation(tree, self.folder, name) for name, tree in trees.items()}

    def condensed(self) -> xr.DataTree:
        """The tree, the command that trains the study, and values per image, condensed to as few as findings need."""
        tree = self.tree.copy()
        tree.attrs["command"] = _command(self.study)
        for name, each in {"": self, **self.evaluations}.items():
            place = f"{EVALUATIONS}/{name}/{IMAGES}" if name else IMAGES
            tree[place] = xr.DataTree(condensed(each.images()))
        return tree

    def status(self, run: Run) -> str:
        """Whether a run is "done", "diverged" or "pending"."""
        return str(self.tree["runs"].to_dataset()["status"].values[self.study.position(run)])

    def save_study(self) -> None:
        """Writes study.yaml."""
        file = self.folder / "study.yaml"
        if not file.exists() or file.read_text(encoding="utf-8") != self.study.to_yaml():
            atomic.write(file, self.study.to_yaml().encode())

    def refresh(self) -> None:
        """Reads records that are new or have changed; kept results do not change."""
        if not self.is_kept:
            self.tree = _tree(self.folder, self.study, self._trust)

    def save(self) -> None:
        """Writes results.nc.

        Raises:
            OSError: it cannot be written; its previous content is intact.
        """
        schema.save(self.tree, self.folder / "results.nc")

    def run(self, /, **coordinates: Any) -> Run:
        """The run at one point of the grid, trained or not; arguments and errors as for `pair`."""
        axes, coordinates = self.study.axes, {key: plain(value) for key, value in coordinates.items()}
        for key, value in coordinates.items():
            if key not in axes:
                raise InputError(f"unknown axis '{key}'; valid: {', '.join(axes)}")
            if value not in axes[key]:
                raise InputError(f"{key}: expected one of {list(axes[key])}, got {value!r}")
        for key, values in axes.items():
            if key not in coordinates and len(values) > 1:
                raise InputError(f"{key}: expected one of {list(values)}, got no {key}: the grid runs over it")
        # The value on the axis, because the key of a run at β = 4.0 is not that of one at 4.
        at = {key: values.index(coordinates[key]) if key in coordinates else 0 for key, values in axes.items()}
        return self.study.run_at({key: axes[key][number] for key, number in at.items()})

    def pair(self, /, **coordinates: Any) -> Pair:
        """The trained pair at one point of the grid, ready for Pyro.

        Args:
            coordinates: a value for each axis, such as ``beta=1, depth=3, seed=0``; optional for an axis with only
                one value.

        Raises:
            InputError: an axis or a value is not in the grid, or the run is not trained yet.
        """
        run = self.run(**coordinates)
        key = self.tree["runs"].to_dataset()["key"].values[self.study.position(run)]
        try:
            checkpoint = Checkpoint.load(RunFolder.of(self.folder, key).weights)
        except FileNotFoundError:
            if self.is_kept:
                raise without_weights(self.folder) from None
            place = self.study.coordinates(run)
            raise InputError(
                f"{self.folder}: the run at {place} is not trained yet, or its weights are missing"
            ) from None
        header = checkpoint.header
        if header.step < run.steps:
            raise InputError(f"{self.folder}: the training of the run at {self.study.coordinates(run)} is not finished")
        pair = self._make_pair(run, torch.Size(header.event_shape))
        stacked = checkpoint.kept.get("params", {}) | checkpoint.kept.get("buffers", {})
        if wrong := [name for name, tensor in stacked.items() if tensor.shape[:1] != (1,)]:
            raise checkpoint_mismatch(wrong[0])
        restore(pair, {name: tensor[0] for name, tensor in stacked.items()})
        if "multiplier" in checkpoint.groups:
            run = run.model_copy(update={"beta": float(checkpoint.groups["multiplier"]["beta"][0])})
        pair.origin = Origin(run, torch.Size(header.event_shape), header.train_images, history(header.environments))
        return pair.eval()


def _above(module: str) -> Any:
    """A module that is above this one: imports go downwards, and what interprets results is loaded when it is used."""
    return import_module(f"pyrovae.{module}")


def _extent(values: NDArray[np.float64]) -> int:
    """The number of images ``[split, images]`` of which some have a value; all if none has."""
    known = np.flatnonzero((~np.isnan(values)).any(0))
    return int(known[-1]) + 1 if len(known) else values.shape[-1]


def without_weights(folder: Path) -> InputError:
    """The error of what needs the weights of kept results."""
    return InputError(
        f"{folder}: expected the folder of a study with weights, got kept results, which have none; "
        f"'pyrovae run {folder}' trains them into runs/{folder}"
    )


def study_in(folder: Path) -> Study:
    """The study in a folder.

    Raises:
        InputError: the folder contains no study.
    """
    if layout.kept_for(folder):
        raise without_weights(folder)
    if not (folder / "study.yaml").is_file():
        problem = "it has no study.yaml" if folder.exists() else "there is no such folder"
        raise InputError(f"{folder}: expected the folder of a study, but {problem}")
    if (folder / "checkpoints").is_dir():
        raise InputError(f"{folder}: made by pyrovae 0.1; open it with that version, or run the study again elsewhere")
    return Study.load(folder / "study.yaml", trust=None)


def _command(study: Study) -> str:
    """The command that trains a study."""
    if study.name not in shipped_names():
        return "pyrovae run study.yaml"
    options = (f"--set {shlex.quote(f'{key}={json.dumps(value)}')}" for key, value in study.changes().items())
    return " ".join([f"pyrovae run {study.name}", *options])


def measured_with(measure: Measure, sources: str) -> str:
    """A digest of what decides the numbers of a measurement; learning curves are recorded in training."""
    return hashlib.sha256(f"{measure.model_dump_json(exclude={'probe', 'points'})} {sources}".encode()).hexdigest()[:16]


def user_sources(measure: Measure) -> str:
    """Checksums of the user's measures."""
    return ", ".join(parts.user_sources(measure.also))


def _tree(folder: Path, study: Study, trust: Collection[str] | None) -> xr.DataTree:
    """The tree in results.nc if it is up to date, otherwise assembled from the records."""
    known = _known_tree(folder, study)
    keys = _keys(folder, study, trust) if known is None else known["runs"].to_dataset()["key"].values
    stamps = {key: dict(RunFolder.of(folder, key).stamps()) for key in set(keys.flat)}
    if known is not None and _is_current(known, keys, stamps):
        return known
    schema.check_size(study)
    return _assembled(folder, study, keys, stamps)


def _keys(folder: Path, study: Study, trust: Collection[str] | None) -> NDArray[Any]:
    """The keys of the runs over the grid.

    They depend on the settings that components declare. If code may not run that declares some, the keys are those of
    folders with the settings of the runs, as far as there are any.
    """
    keys: NDArray[Any] = np.empty(study.shape(), object)
    find: Callable[[Run], str] = key_of
    if trust is not None:
        try:
            check_trust(study.base.model_dump() | study.axes, trust)
        except InputError:
            known = {_settings(file.read_text(encoding="utf-8")): file.parent.name for file in settings_files(folder)}
            find = lambda run: known.get(_settings(to_yaml(run.model_dump())), "")  # noqa: E731
    for run in study.runs():
        keys[study.position(run)] = find(run)
    return keys


def _settings(text: str) -> str:
    """The settings of a run as text, without the number of steps."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("steps:"))


def _known_tree(folder: Path, study: Study) -> xr.DataTree | None:
    """The tree in results.nc if it can be read and is one of this study."""
    try:
        tree = schema.load(folder / "results.nc")
        return tree if tree.attrs["study"] == study.to_yaml() else None
    except Exception:  # missing, damaged or of another version, which all have the same remedy
        return None


def _is_current(tree: xr.DataTree, keys: NDArray[Any], stamps: Mapping[str, Mapping[str, str]]) -> bool:
    """Whether a tree was assembled from the records with these stamps."""
    later = tree.children[EVALUATIONS].children if EVALUATIONS in tree.children else {}
    files = {name: node["runs"].to_dataset()["file"].values for name, node in {"": tree, **later}.items()}
    if {name for each in stamps.values() for name in each} - files.keys():
        return False
    return all(
        known[cell] == stamps[key].get(name, "") for name, known in files.items() for cell, key in np.ndenumerate(keys)
    )


def _assembled(folder: Path, study: Study, keys: NDArray[Any], stamps: Mapping[str, Mapping[str, str]]) -> xr.DataTree:
    """The tree of all records. One that is damaged becomes a warning, and its run is missing."""
    own, weights = Grid(study, schema.shipped_numbers()), {}
    later: dict[str, tuple[Grid, dict[str, str]]] = {}
    for cell, key in np.ndenumerate(keys):
        own.note(cell, key=key)
        for name, stamp in stamps[key].items():
            record = _loaded(RunFolder.of(folder, key).record(name))
            if record is None:
                continue
            header = record.header
            if not name:
                weights[key] = header.weights
                measured = measured_with(Measure.model_validate(header.measure), header.sources)
                own.enter(cell, record, key=key, file=stamp, measured=measured)
                continue
            grid, attributes = later.setdefault(name, (Grid(study), schema.attributes_of(header)))
            if header.weights == weights.get(key) and schema.attributes_of(header) == attributes:
                grid.enter(cell, record, file=stamp)
            else:  # made from earlier weights, or with other settings
                grid.note(cell, file=stamp)
    return schema.tree_of(study, own, later)


def _loaded(file: Path) -> Record | None:
    try:
        return records.load(file)
    except InputError as error:
        warnings.warn(str(error), stacklevel=2)
        return None
