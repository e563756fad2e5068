"""Names in a study → the components behind them, and the settings that these take.

Names and import paths are text: a misspelt name is found without importing torch or a module of the user's.
"""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, cached_property
from hashlib import sha256
from importlib import import_module, metadata
from operator import attrgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pyrovae.errors import InputError

#: A value of a setting.
Value = bool | int | float | str
#: By kind, the components that ship: name in a study → module:attribute. A new component is one line here.
SHIPPED: dict[str, dict[str, str]] = {
    "data": {
        "breast_cancer": "pyrovae.data.sklearn_tables:breast_cancer",
        "cifar10": "pyrovae.data.torchvision_datasets:cifar10",
        "digits": "pyrovae.data.sklearn_tables:digits",
        "emnist": "pyrovae.data.torchvision_datasets:emnist",
        "fashion_mnist": "pyrovae.data.torchvision_datasets:fashion_mnist",
        "kmnist": "pyrovae.data.torchvision_datasets:kmnist",
        "linear": "pyrovae.data.linear:source",
        "mnist": "pyrovae.data.torchvision_datasets:mnist",
        "omniglot": "pyrovae.data.torchvision_datasets:omniglot",
        "svhn": "pyrovae.data.torchvision_datasets:svhn",
        "tetrominoes": "pyrovae.data.tetrominoes:source",
        "wine": "pyrovae.data.sklearn_tables:wine",
    },
    "split": {
        "checkerboard": "pyrovae.data.splits:checkerboard",
        "cropped": "pyrovae.data.splits:cropped",
        "held_out": "pyrovae.data.splits:held_out",
        "published": "pyrovae.data.splits:published",
        "random": "pyrovae.data.splits:random",
    },
    "pixels": {
        "continuous": "pyrovae.data.pixels:continuous",
        "dynamic": "pyrovae.data.pixels:dynamic",
        "static": "pyrovae.data.pixels:static",
    },
    "pair": {},
    "model": {
        "gap": "pyrovae.models.gap:GapVAE",
        "hierarchical": "pyrovae.models.hierarchical:HierarchicalVAE",
        "vae": "pyrovae.models.vae:VAE",
    },
    "prior": {
        "aggregate": "pyrovae.models.priors.aggregate:AggregatePosterior",
        "aggregate_leave_one_out": "pyrovae.models.priors.aggregate:leave_one_out",
        "aggregate_subsampled": "pyrovae.models.priors.aggregate:AggregatePosterior.subsampled",
        "diagonal": "pyrovae.models.priors.diagonal:Diagonal",
        "exemplar": "pyrovae.models.priors.exemplar:Exemplar",
        "flow": "pyrovae.models.priors.flow:Flow",
        "flow_maf": "pyrovae.models.priors.flow:flow_maf",
        "flow_matching": "pyrovae.models.priors.flow_matching:FlowMatching",
        "mixture": "pyrovae.models.priors.mixture:Mixture",
        "standard_normal": "pyrovae.models.priors.standard_normal:StandardNormal",
        "student_t": "pyrovae.models.priors.student_t:StudentT",
        "vamp": "pyrovae.models.priors.vamp:VampPrior",
        "vamp_random": "pyrovae.models.priors.vamp:vamp_random",
    },
    "likelihood": {
        "bernoulli": "pyrovae.models.likelihoods.bernoulli:Bernoulli",
        "categorical": "pyrovae.models.likelihoods.categorical:Categorical",
        "continuous_bernoulli": "pyrovae.models.likelihoods.continuous_bernoulli:ContinuousBernoulli",
        "discretised_logistic": "pyrovae.models.likelihoods.discretised_logistic:DiscretisedLogistic",
        "gaussian": "pyrovae.models.likelihoods.gaussian:Gaussian",
        "gaussian_per_pixel": "pyrovae.models.likelihoods.gaussian:GaussianPerPixel",
        "gaussian_shared": "pyrovae.models.likelihoods.gaussian:GaussianShared",
        "negative_binomial": "pyrovae.models.likelihoods.negative_binomial:NegativeBinomial",
        "poisson": "pyrovae.models.likelihoods.poisson:Poisson",
    },
    "guide": {
        "flow": "pyrovae.guides.flow:Flow",
        "full_rank": "pyrovae.guides.full_rank:FullRank",
        "hierarchical": "pyrovae.guides.hierarchical:Hierarchical",
        "mean_field": "pyrovae.guides.mean_field:MeanField",
    },
    "network": {
        "conv_large": "pyrovae.networks:conv_large",
        "conv_medium": "pyrovae.networks:conv_medium",
        "conv_small": "pyrovae.networks:conv_small",
        "gated_mlp": "pyrovae.networks:gated_mlp",
        "linear": "pyrovae.networks:linear",
        "mlp": "pyrovae.networks:mlp",
    },
    "measure": {
        "rate_distortion": "pyrovae.measures.rate_distortion:measure",
        "information": "pyrovae.measures.information:measure",
        "likelihood": "pyrovae.measures.likelihood:measure",
        "memorisation": "pyrovae.measures.memorisation:measure",
        "difficulty": "pyrovae.measures.difficulty:measure",
        "effective_rank": "pyrovae.measures.effective_rank:measure",
        "target_rate": "pyrovae.measures.target_rate:measure",
        "pictures": "pyrovae.measures.pictures:measure",
        "generalization_gap": "pyrovae.measures.generalization_gap:measure",
        "fixed_decoder_curve": "pyrovae.measures.fixed_decoder_curve:measure",
        "population": "pyrovae.measures.population:measure",
    },
}
#: Installed distributions add components here, as ``prior.horseshoe = "their_package.priors:Horseshoe"``.
ENTRY_POINTS = "pyrovae.parts"
#: A component of the user's own, ``module:attribute``.
_IMPORT_PATH = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")
#: What a data set in memory is named by, before its checksum.
MEMORY = "memory-"
#: What reads a data set that is given by its path, by the suffix of a file.
_FOLDER = "pyrovae.data.images:from_folder"
FILES = {
    ".npz": "pyrovae.data.images:from_npz",
    ".npy": "pyrovae.data.tables:from_npy",
    ".csv": "pyrovae.data.tables:from_table",
    ".parquet": "pyrovae.data.tables:from_table",
}
_LABEL = re.compile(r"([^()]+)\((\w+=[^,()]+(?:, *\w+=[^,()]+)*)\)")


class Component(NamedTuple):
    """A component as a study names it, with the settings that it brings itself."""

    name: str
    settings: Mapping[str, Value]


@dataclass(frozen=True)
class Setting:
    """A constructor parameter with a default and an annotation.

    Attributes:
        annotation: its type, perhaps with bounds.
        default: its value unless a run sets it.
    """

    annotation: Any
    default: Any

    def validated(self, value: Any) -> Any:
        """The value in the setting's type.

        Raises:
            ValueError: it is of another type, or out of range.
        """
        if isinstance(value, bool) and self.annotation is not bool:
            raise ValueError(f"expected a number or a string, got the boolean {value}")
        try:
            return self._adapter.validate_python(value)
        except ValidationError as error:
            problem = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"{problem[0].lower()}{problem[1:]}, got {value!r:.200}") from None

    @cached_property
    def _adapter(self) -> TypeAdapter[Any]:
        return TypeAdapter(self.annotation, config=_CONFIG)


_CONFIG = ConfigDict(coerce_numbers_to_str=True, allow_inf_nan=False)
_VALUE_TYPES = (bool, int, float, str)


def parse(text: str) -> Component:
    """A component as a study spells it: a name, perhaps with settings of its own.

    Example:
        >>> parse("mixture(components=10)")
        Component(name='mixture', settings={'components': 10})
        >>> parse("standard_normal").settings
        {}
        >>> parse("/photos/my cats(background=black)").name
        '/photos/my cats'
    """
    match = _LABEL.fullmatch(text)
    if match is None:
        return Component(text, {})
    pairs = (part.split("=", 1) for part in match[2].split(","))
    return Component(match[1], {key.strip(): _scalar(value.strip()) for key, value in pairs})


def label(name: str, settings: Mapping[str, Value]) -> str:
    """The spelling of a component that `parse` reads.

    Example:
        >>> label("student_t", {"degrees": 3.0}), label("vae", {})
        ('student_t(degrees=3)', 'vae')
    """
    return f"{name}({', '.join(f'{key}={written(value)}' for key, value in settings.items())})" if settings else name


def written(value: Value) -> str:
    """A value of a setting as text.

    Example:
        >>> [written(value) for value in (3.0, 0.1, True, "NSF")]
        ['3', '0.1', 'true', 'NSF']
    """
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else str(value)


def names(kind: str) -> Mapping[str, str]:
    """The components of a kind by name, those of installed distributions included, with their import paths."""
    prefix = f"{kind}."
    added = {name.removeprefix(prefix): path for name, path in _installed().items() if name.startswith(prefix)}
    return added | SHIPPED[kind]


@cache
def _installed() -> Mapping[str, str]:
    return {entry.name: entry.value for entry in metadata.entry_points(group=ENTRY_POINTS)}


def check_name(kind: str, name: str) -> None:
    """Raises InputError if there is no component of that name; a path of data, or of code, is not looked up."""
    if name in names(kind) or user_module(name) or (kind == "data" and (is_path(name) or name.startswith(MEMORY))):
        return
    further = ["module:name for one of yours"]
    further += [f"the path of a folder of images or of a file ({', '.join(FILES)})"] if kind == "data" else []
    raise InputError(f"unknown {kind} {name!r:.200}; valid: {', '.join([*sorted(names(kind)), *further])}")


def user_module(name: str) -> str | None:
    """The module that a component of the user's own, ``module:name``, is in; None for any other name."""
    match = _IMPORT_PATH.fullmatch(name)
    return match[1] if match else None


def user_sources(names: Iterable[str]) -> list[str]:
    """The modules of the user's own that these components are in, with a checksum of the source of each."""
    modules = sorted({module for name in names if (module := user_module(name))})
    files = [(module, getattr(import_module(module), "__file__", None)) for module in modules]
    return [f"{module} (source {sha256(Path(file).read_bytes()).hexdigest()[:12]})" for module, file in files if file]


def is_path(data: str) -> bool:
    """Whether a data set is given by its path."""
    return data not in names("data") and (Path(data).suffix.lower() in FILES or "/" in data or Path(data).is_dir())


def reader(path: str) -> str:
    """The component that reads a data set that is given by its path, ``module:name``.

    Example:
        >>> reader("mine.npz"), reader("photos/")
        ('pyrovae.data.images:from_npz', 'pyrovae.data.images:from_folder')
    """
    return FILES.get(Path(path).suffix.lower(), _FOLDER)


def resolve(kind: str, name: str) -> Callable[..., Any]:
    """The component of that name, imported.

    Raises:
        InputError: there is none, it cannot be imported, or it is neither a class nor a function.
    """
    check_name(kind, name)
    module, _, attribute = names(kind).get(name, name).partition(":")
    try:
        component = attrgetter(attribute)(import_module(module))
    except InputError as error:  # a declaration in it is wrong
        raise InputError(f"{kind} '{name}': {error}") from error
    except Exception as error:  # whatever the module raises
        reason = " ".join(str(error).split())
        raise InputError(f"{kind}: expected '{name}' to be importable, got {type(error).__name__}: {reason}") from error
    if not callable(component):
        raise InputError(f"{kind}: expected '{name}' to be a class or a function, got {type(component).__name__}")
    return component


def settings_of(kind: str, name: str) -> dict[str, Setting]:
    """The settings of a component: its parameters of a plain type that have a default and an annotation.

    Raises:
        InputError: as `resolve`.

    Example:
        >>> settings_of("likelihood", "gaussian")["noise_scale"].default
        1.0
    """
    if kind == "data" and name.startswith(MEMORY):
        return {}
    if kind == "data" and is_path(name):
        name = reader(name)
    return _settings(resolve(kind, name))


@cache
def _settings(component: Callable[..., Any]) -> dict[str, Setting]:
    parameters = inspect.signature(component, eval_str=True).parameters.values()
    return {
        each.name: Setting(each.annotation, each.default)
        for each in parameters
        if each.default is not each.empty and _is_plain(each.annotation)
    }


def description(kind: str, name: str) -> tuple[str, str]:
    """For a person to read: the settings of a component with their defaults, and the first line of its docstring."""
    try:
        component, settings = resolve(kind, name), settings_of(kind, name)
    except InputError as error:
        return "", str(error)
    shown = (key if each.default is None else f"{key}={written(each.default)}" for key, each in settings.items())
    docstring = inspect.getdoc(getattr(component, "func", component)) or ""
    return ", ".join(shown), docstring.partition("\n")[0].replace("`", "")


def _is_plain(annotation: Any) -> bool:
    """Whether an annotation is one of a number, a string or a boolean, perhaps with bounds or None."""
    if get_origin(annotation) is Annotated:
        return _is_plain(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        return all(each is NoneType or _is_plain(each) for each in get_args(annotation))
    return annotation in _VALUE_TYPES or get_origin(annotation) is Literal


def _scalar(text: str) -> Value:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        with suppress(ValueError):
            return number(text)
    return text
