"""What settings of a study have to fit together, told before anything is made."""

from collections.abc import Sequence

from pyrovae.build import REGISTRIES, is_path, part_of, taken_by
from pyrovae.errors import InputError
from pyrovae.study.grid import Run

#: Settings that are taken by some parts and not by others.
SPLIT_SETTINGS = ("train_ratio", "held_out")
PART_SETTINGS = (*SPLIT_SETTINGS, "noise_scale", "depth", "width", "components", "refresh", "gamma")


def check_names(runs: Sequence[Run]) -> None:
    """Raises InputError if a part that a run names does not exist, or no part takes a setting that is meant for one."""
    for setting in REGISTRIES:
        for name in {getattr(run, setting) for run in runs} - {None}:
            if not (setting == "data" and is_path(name)):
                part_of(setting, name)
    used = {(setting, getattr(run, setting)) for run in runs for setting in _used(run)}
    taken = {name for each in used for name in taken_by(*each)}
    if any(run.pair is not None for run in runs):
        taken.add("gamma")  # which its programs may name
    for setting in PART_SETTINGS:
        values = {getattr(run, setting) for run in runs}
        if setting not in taken and len(values) > 1:
            raise InputError(
                f"{setting}: expected an axis along which runs differ, but no part of this study takes the setting; "
                f"give it one value, as in --set {setting}={min(values)}"
            )
        if setting in (*SPLIT_SETTINGS, "gamma") and setting not in taken and values != {None}:
            kind = "model" if setting == "gamma" else "split"
            raise InputError(
                f"{setting}: the {kind} '{getattr(runs[0], kind)}' does not take it, got {values.pop()}; "
                f"without it: --set {setting}=null"
            )
    for run in runs:
        if run.cycles > run.steps:
            raise InputError(f"cycles: expected at most the {run.steps} steps of the training, got {run.cycles}")
        check_prior(run)


def bank_size(run: Run, images: int) -> int | None:
    """Encodings that each training image is held to at a step, of all there are; None where no part holds encodings."""
    if run.pair is not None:
        return None
    taken = [taken_by(setting, getattr(run, setting)) for setting in ("model", "prior")]
    sizes = [min(run.components, images) if "components" in each else images for each in taken if "encode" in each]
    return max(sizes, default=None)


def _used(run: Run) -> list[str]:
    """The settings whose parts a run is made of, other than its data."""
    return ["split", "pair"] if run.pair is not None else ["split", "model", "prior", "likelihood", "guide", "network"]


def check_prior(run: Run) -> None:
    """Raises InputError if a prior asks for a q(z|x) that is none of its z, or γ would reward an old bank's error."""
    if run.pair is not None:
        return
    if run.model == "hierarchical" and {"posterior", "distribution"} & set(taken_by("prior", run.prior)):
        raise InputError(
            f"prior: '{run.prior}' is made of q(z|x), which the model 'hierarchical' has for its z1 and not for z2, of "
            "which it is the prior; expected one of standard_normal, diagonal, mixture, flow"
        )
    if "gamma" not in taken_by("model", run.model):
        return
    if "encode" in taken_by("prior", run.prior):
        raise InputError(
            f"prior: expected one whose gap can have a weight in the model '{run.model}', got '{run.prior}'"
        )
    if run.weights()["gamma"] > run.beta and (run.refresh > 1 or run.pixels == "dynamic"):
        raise InputError(
            f"gamma: expected at most β = {run.beta:g}, got {run.gamma:g}: more would reward the error of "
            "encodings that are not those of a step; --set refresh=1, which is slow, and pixels that stay as they are"
        )
