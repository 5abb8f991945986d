"""The colours that all pictures share, for GitHub's light and dark pages.

Blue and orange differ for colour-blind readers, too. A picture stands on a card of its own, so that
it stays readable where the page's theme is not the one that the browser reports.
"""

LIGHT = {
    "page": "#ffffff",  # GitHub's
    "card": "#ffffff",
    "edge": "#d1d9e0",  # of the card
    "ink": "#1f2328",
    "muted": "#59636e",  # labels that may be overlooked
    "faint": "#dfe4ea",  # grid lines, empty cells
    "blue": "#0a66c2",  # forwards, positive, validation, ours
    "orange": "#c2560a",  # backwards, negative, training
    "soft": "#a9b4c0",  # what blue and orange are compared with
    "mark": "#f2b800",  # where to look
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
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
SMALLEST_TEXT = 12  # pixels, where a picture is shown as wide as it is
WIDTH = 830  # pixels, what GitHub gives to a README


def style_sheet() -> str:
    """CSS that names the colours for an SVG, `var(--blue)` and so on."""
    light, dark = (
        ";".join(f"--{name}:{value}" for name, value in theme.items()) for theme in (LIGHT, DARK)
    )
    return f"svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"


def var(name) -> str:
    """How an SVG's style refers to a colour of ours."""
    assert name in LIGHT, name
    return f"var(--{name})"
