"""What a study could find, before it has run."""

from collections.abc import Iterator, Sequence

import numpy as np
import xarray as xr

from pyrovae.analysis.findings import FINDINGS
from pyrovae.analysis.findings.cells import ON_REQUEST, PER_IMAGE, StudyCells, sources_of_error
from pyrovae.analysis.findings.verdicts import Verdict, rounded
from pyrovae.measures.declared import of_settings
from pyrovae.study import SPLITS, Study

#: What a text names that only results can tell.
_UNKNOWN = {"at": "", "by": "", "best": "the best", "closest": "the next"}


def prospects(study: Study, before: Sequence[Verdict] = ()) -> Iterator[str]:
    """The findings that a study can address, each with the degrees of freedom behind its verdicts.

    Args:
        before: verdicts of the same study with fewer runs, whose variance gives the smallest effect that is found.

    Example:
        >>> for line in prospects(Study(name="mine", beta=[0.01, 0.1, 1], seed=[0, 1, 2])):
        ...     print(line)
        findings that this study can address (df: degrees of freedom over images and 3 seeds, for this training set):
          β 1 → 0.01, test distortion falls: 4 df
          G grows while I stays at log N, test distortion falls: 4 df
          β 0.01 → 1, reconstructions are closer to training images: 4 df
        >>> print(*prospects(Study(name="mine", beta=[0.01, 1])), sep="\\n")
        one seed decides nothing: the error of a single run is unknown; take several, as in --set seed=[0,1,2]
    """
    study = study.resolved()
    found = [(each, contrast) for each in FINDINGS for contrast in each.contrasts(_imagined(study))]
    planned = [(each, contrast) for each, contrast in found if not contrast.note]
    if not planned:
        yield "this study can address none of the findings: they need several values of β, depth, γ or prior"
        return
    if not any(contrast.effect.is_known for _, contrast in planned):
        yield ("one seed decides nothing: the error of a single run is unknown; take several, as in --set seed=[0,1,2]")
        return
    earlier = {(each.finding, each.contrast.where): each.contrast for each in before}
    lines: dict[str, list[str]] = {}
    for finding, contrast in planned:
        terms, effect, size = {**contrast.terms, **_UNKNOWN}, contrast.effect, ""
        known = earlier.get((finding, contrast.where))
        if known is not None and known.effect.is_known:
            effect = known.effect.with_repeats(effect.repeats)
            where = f" ({contrast.where})" if contrast.where else ""
            size = f"{rounded(effect.detectable(len(planned)))} {contrast.unit}{where}"
        text = f"{finding.compared}, {finding.falls}: {effect.runs.df:.3g} df".format(**terms)
        lines.setdefault(text, []).append(size)
    yield f"findings that this study can address (df: degrees of freedom over {sources_of_error(study)}):"
    for text, sizes in lines.items():
        each = f" in each of {len(sizes)} settings" if len(sizes) > 1 else ""
        smallest = ", ".join(filter(None, sizes))
        yield f"  {text}{each}{f'; detects effects of {smallest}' if smallest else ''}"


def _imagined(study: Study) -> StudyCells:
    """Numbers of a finished study, made up, with I at log N everywhere."""
    axes = study.dimensions()
    draws, shape = np.random.default_rng(0), tuple(len(values) for values in axes.values())
    dims = (*axes, "split", "image")
    measured = {each.name for measure in of_settings(study.measure) for each in measure.quantities}
    names = [*PER_IMAGE, *(name for name in ON_REQUEST if name in measured)]
    images = {name: (dims, draws.normal(10, size=(*shape, len(SPLITS), 4))) for name in names}
    numbers = {name: (tuple(axes), np.ones(shape)) for name in ("mutual_information", "log_n", "prior_gap_se")}
    gaps = {"prior_gap": (tuple(axes), np.arange(float(np.prod(shape))).reshape(shape))}
    flags = {name: (tuple(axes), np.zeros(shape, bool)) for name in ("loose", "diverged", "missed")}
    return StudyCells(
        images=xr.Dataset(images, {**axes, "split": list(SPLITS), "image": range(4)}),
        information=xr.Dataset(numbers | gaps | flags, axes),
        prior_swapped=False,
        margin=study.margin,
        sources=sources_of_error(study),
    )
