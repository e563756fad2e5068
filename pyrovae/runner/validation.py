"""Which settings of a study fit together, checked before anything is made."""

from typing import NamedTuple

from pyrovae import parts
from pyrovae.errors import InputError
from pyrovae.study import Run, Study, component_settings, parameters_of, takes_gamma


def check_study(study: Study) -> Study:
    """The study with its settings resolved.

    Raises:
        InputError: a component cannot be imported, its settings are wrong, or settings do not fit together.
    """
    study = study.resolved()
    runs = study.runs()
    given = [run.gamma for run in runs if run.gamma is not None]
    if given and not any(takes_gamma(run) for run in runs):
        raise InputError(
            f"gamma: the model '{runs[0].model}' does not take it, got {min(given):g}; without it: --set gamma=null"
        )
    if given and (targets := [run.target_rate for run in runs if run.target_rate is not None]):
        raise InputError(
            f"gamma: expected none with a target rate ({targets[0]:g}), because γ is β then, got {min(given):g}"
        )
    for run in runs:
        if run.keep == "best" and run.validation_images is None:
            raise InputError("keep: expected validation_images, by whose loss the weights are best, got none of them")
        if run.keep == "best" and run.target_rate is not None:
            raise InputError("keep: expected last with a target rate, because losses at different β do not compare")
        if run.cycles > run.steps:
            raise InputError(f"cycles: expected at most the {run.steps} steps of the training, got {run.cycles}")
        if run.pair is None and hasattr(parts.resolve("prior", run.component("prior").name), "fit_loss"):
            raise InputError(
                f"prior: '{run.prior}' has a loss of its own, by which it is fitted to trained pairs: "
                f"pyrovae evaluate DIR --prior {run.prior}; expected one that is trained with the pair"
            )
        check_prior(run)
    return study


class Bank(NamedTuple):
    """Encodings that each training image is compared with at a step, refreshed every so many steps."""

    size: int
    refresh: int


def bank_of(run: Run, images: int) -> Bank | None:
    """The bank of a run with that many training images; None where no component holds encodings."""
    if run.pair is not None:
        return None
    holders = [component_settings(run, kind) for kind in ("model", "prior") if "encode" in parameters_of(run, kind)]
    banks = [
        Bank(min(each.get("components") or each.get("others") or images, images), each["refresh"]) for each in holders
    ]
    return max(banks, default=None)


def check_prior(run: Run) -> None:
    """Raises InputError if a prior needs a q(z|x) that its z has not, or if γ would reward an old bank's error."""
    if run.pair is not None:
        return
    prior = parameters_of(run, "prior")
    if run.component("model").name == "hierarchical" and {"posterior", "distribution"} & prior:
        raise InputError(
            f"prior: '{run.prior}' is made of q(z|x), which the model 'hierarchical' has for its z1 but not for z2, "
            "whose prior it is; expected one such as standard_normal, diagonal, mixture or flow"
        )
    if "gamma" not in parameters_of(run, "model"):
        return
    if "encode" in prior:
        raise InputError(
            f"prior: expected one whose gap can have a weight in the model '{run.model}', got '{run.prior}'"
        )
    refresh = component_settings(run, "model")["refresh"]
    if run.weights()["gamma"] > run.beta and (refresh > 1 or run.pixels == "dynamic"):
        raise InputError(
            f"gamma: expected at most β = {run.beta:g}, got {run.gamma:g}: a larger weight would reward the error of "
            "old encodings; --set refresh=1, which is slow, and pixels other than dynamic"
        )
