"""Colours on white and on a dark background."""

import matplotlib
from matplotlib.colors import to_rgb

#: Red, green and blue from 0 to 1.
Colour = tuple[float, float, float]
# Okabe and Ito's colours, which colour-blind readers can distinguish; in grey, the shapes differ.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
_BACKGROUND, _TEXT = "#14181d", "#e4e8ec"
_BACKGROUNDS, _TEXTS = (
    ("figure.facecolor", "axes.facecolor"),
    ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"),
)
#: Matplotlib's settings for light on dark.
DARK = dict.fromkeys(_BACKGROUNDS, _BACKGROUND) | dict.fromkeys(_TEXTS, _TEXT)


def grey(share: float) -> Colour:
    """The background, mixed with a share of the colour of text.

    Example:
        >>> grey(0.0), grey(0.5)
        ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5))
    """
    background, text = (to_rgb(matplotlib.rcParams[name]) for name in ("axes.facecolor", "text.color"))
    return _mixed(background, text, share)


def visible(colour: str) -> Colour:
    """A colour, lighter on a dark background.

    Example:
        >>> visible("#ff0000")
        (1.0, 0.0, 0.0)
    """
    return _mixed(to_rgb(colour), (1.0, 1.0, 1.0), 0.0 if sum(grey(0)) > 1.5 else 0.35)


def readable(colour: Colour) -> Colour:
    """A colour in which text has enough contrast with the background."""
    return _mixed(colour, to_rgb(matplotlib.rcParams["text.color"]), 0.45)


def _mixed(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = ((1 - share) * a + share * b for a, b in zip(one, other, strict=True))
    return red, green, blue
