"""The findings of the paper, and what studies obtained on each."""

from collections.abc import Iterator, Mapping

import xarray as xr

from pyrovae.analysis.findings.statistics import repeated
from pyrovae.store.results import Results

#: The findings, in our words. OOD is the checkerboard split, ID the random one; deep is three layers, shallow one.
PAPER: Mapping[int, str] = {
    1: "Along a curve of β, training distortion falls as the rate grows, with a slope of about −β.",
    2: "OOD at β = 1, the deep network has a much higher test distortion than the shallow one, though its training "
    "distortion is lower.",
    3: "OOD at small β (0.1 and below), the order is reversed: the deep network has the lower test distortion.",
    4: "For the deep network, lowering β from 1 improves test distortion by a lot and then reaches a plateau; for the "
    "shallow one, the curve is a shallow U.",
    5: "β > 1 is worse on train and test (underfitting).",
    6: "As β falls, I reaches log N and stays there, while R, and so G, keeps growing.",
    7: "For the deep network OOD, test distortion keeps falling after I has reached log N.",
    8: "ID, capacity helps also at β = 1, and the gaps between train and test are smaller.",
    9: "At β = 1, reconstructions of test images by the deep network are closer to training images than at small β.",
    10: "Test rate is close to training rate at equal β.",
    11: "Training distortion stays above the floor.",
    12: "Harder splits widen the gaps between train and test, and the gain from a small β with them.",
}
UNTESTED = "Not tested."


def rows(studies: Mapping[str, Results]) -> Iterator[tuple[str, str, str]]:
    """For each finding of the paper: its text, what each study obtained, and the commands that show it.

    Args:
        studies: results by the name that commands take.

    Example:
        >>> from pyrovae import open_results
        >>> text, obtained, command = list(rows({"paper-slice": open_results("paper-slice")}))[4]
        >>> text
        '5. β > 1 is worse on train and test (underfitting).'
    """
    verdicts = [(name, verdict) for name, each in studies.items() for verdict in each.findings()]
    for number, text in PAPER.items():
        found = [(name, verdict) for name, verdict in verdicts if verdict.finding.number == number]
        obtained = "; ".join(f"{name}: {verdict}" for name, verdict in found)
        commands = dict.fromkeys(f"`pyrovae show {name} findings`" for name, _ in found)
        yield f"{number}. {text}", obtained or UNTESTED, ", ".join(commands)
    for name, results in studies.items():
        if lines := list(crossings(results.tree["curves"].to_dataset()["distortion"])):
            yield "Steps: when the deep network overtakes the shallow one.", f"{name}: {'; '.join(lines)}", ""


def crossings(curves: xr.DataArray) -> Iterator[str]:
    """From which step on the deepest network has a lower test distortion than the shallowest, at each β.

    Args:
        curves: distortion over split, step and the axes of a grid.

    Example:
        >>> values = [[50.0, 40.0, 30.0], [60.0, 40.5, 28.0]]
        >>> coords = {"split": ["test"], "beta": [0.1], "depth": [1, 3], "step": [1, 1000, 5000]}
        >>> list(crossings(xr.DataArray([[values]], coords, ["split", "beta", "depth", "step"])))
        ['β = 0.1: from step 5,000 on (−0.5 nats at step 1,000, +2.0 at 5,000; 1 seed)']
    """
    if not {"beta", "depth"} <= set(curves.dims):
        return
    test, depths = curves.sel(split="test", drop=True), sorted(curves["depth"].values)
    lead = test.sel(depth=depths[0], drop=True) - test.sel(depth=depths[-1], drop=True)
    others = [dim for dim in lead.dims if dim not in ("beta", "step")]
    seeds = int(lead.isel(step=-1).notnull().sum(repeated(lead)).max()) if repeated(lead) else 1
    for beta, each in lead.mean(others).groupby("beta"):
        known = each.squeeze().dropna("step")
        if not known.size:
            continue
        steps, ahead = known["step"].values, known.values > 0
        behind = [step for step, is_ahead in zip(steps, ahead, strict=True) if not is_ahead]
        after = [step for step in steps if not behind or step > behind[-1]]
        when = f"from step {after[0]:,} on" if after else f"not within {steps[-1]:,} steps"
        shown = [steps[abs(steps - steps[-1] / share).argmin()] for share in (5, 1)]
        values = ", ".join(
            f"{float(known.sel(step=step)):+.1f}{' nats at step' if step == shown[0] else ' at'} {step:,}"
            for step in dict.fromkeys(shown)
        )
        yield f"β = {beta:g}: {when} ({values.replace('-', '−')}; {seeds} seed{'s' * (seeds != 1)})"
