"""The colours of all charts and pages, in a light and a dark theme.

Orange is training and blue is validation in all of them; colour-blind readers can tell them apart.
"""

import io
import re

LIGHT = {
    "page": "#ffffff",  # GitHub's
    "card": "#ffffff",
    "edge": "#d1d9e0",  # of the card
    "ink": "#1f2328",
    "muted": "#59636e",  # secondary labels
    "faint": "#dfe4ea",  # grid lines, empty cells
    "blue": "#0a66c2",  # forwards, positive, validation, ours
    "orange": "#c2560a",  # backwards, negative, training
    "soft": "#a9b4c0",  # references and baselines
    "mark": "#f2b800",  # highlights
}
DARK = {
    "page": "#0d1117",
    "card": "#151b23",
    "edge": "#3d444d",
    "ink": "#f0f6fc",
    "muted": "#a3acb6",
    "faint": "#303842",
    "blue": "#5cabff",
    "orange": "#ff9a3d",
    "soft": "#6b7682",
    "mark": "#ffd21f",
}


def css_variables(theme) -> str:
    """Return CSS variables for the colours of LIGHT or DARK: `--blue:#0a66c2` and so on."""
    return ";".join(f"--{name}:{value}" for name, value in theme.items())


def var(name) -> str:
    """Return the CSS reference to a colour of the theme."""
    assert name in LIGHT, name
    return f"var(--{name})"


def themed_svg(figure) -> str:
    """Return matplotlib's figure as SVG, with its colours of LIGHT replaced by `var(--name)`.

    The same figure gives the same bytes.
    """
    from matplotlib.backends.backend_svg import FigureCanvasSVG  # not at the top: it takes a second

    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    names = {value: name for name, value in LIGHT.items() if name != "page"}
    return re.sub(
        "#[0-9a-f]{6}",
        lambda found: var(names[found[0]]) if found[0] in names else found[0],
        text[text.index("<svg") :],
    )
