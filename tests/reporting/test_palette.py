"""One palette: the report, the pictures, and the pages, which are files of their own."""

import re
from pathlib import Path

import pytest
from matplotlib.colors import to_rgb

from explaining import pictures
from reporting.line_chart import STYLES
from reporting.palette import DARK, LIGHT

PROJECT = Path(__file__).parent.parent.parent
# The pages' names of the palette's colours.
NAMES = {
    "page": "page",
    "card": "card",
    "ink": "ink",
    "muted": "muted",
    "line": "edge",
    "on": "page",
    "training": "orange",
    "bad": "orange",
    "validation": "blue",
    "bar": "blue",
}
PAGES = ("teaching/page/style.css", "exporting/index.html")


@pytest.mark.parametrize("path", PAGES)
def test_the_pages_have_the_palette_in_both_themes(path):
    found = re.findall(r":root \{(.*?)\}", (PROJECT / path).read_text(), re.DOTALL)
    assert len(found) == 2
    for text, theme in zip(found, (LIGHT, DARK), strict=True):
        colours = dict(re.findall(r"--(\w+): (#\w+)", text))
        assert len(colours) >= 8
        assert colours == {name: theme[NAMES[name]] for name in colours}


def test_training_is_orange_and_validation_blue_everywhere():
    assert STYLES["training"]["color"] == LIGHT["orange"]
    assert STYLES["validation"]["color"] == LIGHT["blue"]
    template = (PROJECT / "reporting/report_template.html").read_text()
    assert re.search(r"\.key\.training \{[^}]*var\(--orange\)", template)
    assert re.search(r"\.key\.validation \{[^}]*var\(--blue\)", template)
    style = (PROJECT / PAGES[0]).read_text()
    assert ".training { stroke: var(--training); }" in style
    assert ".validation { stroke: var(--validation); }" in style
    curves = (PROJECT / "docs/curves.svg").read_text()
    for name, colour in (("training", "orange"), ("validation", "blue")):
        assert re.search(rf"fill: var\(--{colour}\)[^>]*>{name}<", curves)
    readme = (PROJECT / "README.md").read_text()
    assert "Orange is training, blue validation, in all charts." in readme


def test_pictures_of_a_network_have_the_palettes_blue():
    """`explaining` is below `reporting`, so it has a copy."""
    assert to_rgb(DARK["blue"]) == pytest.approx([part / 255 for part in pictures.BAR])
    assert f'color="{LIGHT["blue"]}"' in (PROJECT / "explaining/time_probe.py").read_text()


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_can_be_read(theme):
    """The contrast of WCAG 2.2, level AA."""
    for text in ("ink", "muted", "blue", "orange"):
        for ground in ("page", "card"):
            darker, lighter = sorted(map(luminance, (theme[text], theme[ground])))
            assert (lighter + 0.05) / (darker + 0.05) >= 4.5


def luminance(colour) -> float:
    parts = [
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4
        for part in to_rgb(colour)
    ]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]
