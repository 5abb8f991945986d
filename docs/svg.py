"""A small writer of SVG pictures, and of animations in steps.

Lengths are in pixels at the width at which GitHub shows a README.
"""

from html import escape

from reporting.palette import DARK, LIGHT, css_variables, var

WIDTH = 830  # pixels, what GitHub gives to a README
MIN_TEXT = 12  # pixels, where a picture is shown as wide as it is
FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
STEP = 0.13  # seconds that a sliding kernel stays at one place
HOLD = 2.6  # seconds that the finished picture stays


def style_sheet() -> str:
    """Return CSS variables for the colours of an SVG."""
    light, dark = css_variables(LIGHT), css_variables(DARK)
    return f"svg{{{light}}}@media(prefers-color-scheme:dark){{svg{{{dark}}}}}"


class Svg:
    """Shapes on a card, drawn in the order in which they are added.

    The card keeps a picture readable where the page's theme is not the one that the browser
    reports.
    """

    def __init__(self, height, description, width=WIDTH):
        self.width, self.height, self.description = width, height, description
        self.parts, self.styles = [], [style_sheet()]
        self.rect(0.5, 0.5, width - 1, height - 1, "card", line="edge", radius=8)

    def rect(
        self,
        x,
        y,
        width,
        height,
        fill=None,
        *,
        opacity=1,
        line=None,
        line_width=1,
        radius=0,
        extra="",
    ):
        """Add a rectangle; fill: a name in the palette or a CSS colour; extra: attributes."""
        style = f"fill:{_colour(fill)}"
        style += f";fill-opacity:{_number(opacity)}" if opacity < 1 else ""
        style += f";stroke:{_colour(line)};stroke-width:{_number(line_width)}" if line else ""
        corner = f' rx="{_number(radius)}"' if radius else ""
        self.parts.append(
            f'<rect x="{_number(x)}" y="{_number(y)}" width="{_number(width)}" '
            f'height="{_number(height)}"{corner} style="{style}"{extra}/>'
        )

    def text(self, x, y, words, size=13, colour="ink", *, anchor="start", bold=False, extra=""):
        """Add text; y: the baseline; anchor: start, middle or end."""
        assert size >= MIN_TEXT, words
        weight = ";font-weight:600" if bold else ""
        place = f";text-anchor:{anchor}" if anchor != "start" else ""
        self.parts.append(
            f'<text x="{_number(x)}" y="{_number(y)}" style="font-size:{size}px;'
            f'fill:{_colour(colour)}{weight}{place}"{extra}>{escape(str(words))}</text>'
        )

    def path(self, data, line="ink", width=1.5, fill=None, *, opacity=1, extra=""):
        """Add a path; data: SVG's `d`."""
        fade = f";opacity:{_number(opacity)}" if opacity < 1 else ""
        self.parts.append(
            f'<path d="{data}" style="fill:{_colour(fill)};stroke:{_colour(line)};'
            f'stroke-width:{_number(width)};stroke-linejoin:round{fade}"{extra}/>'
        )

    def arrow(self, x, y, length, colour="muted"):
        """Add an arrow from left to right, with its tip at x + length."""
        tip = x + length
        self.path(f"M{_number(x)} {_number(y)}H{_number(tip)}m-6-5l6 5l-6 5", colour, 1.5)

    def open_group(self, extra=""):
        self.parts.append(f"<g{extra}>")

    def close_group(self):
        self.parts.append("</g>")

    def source(self) -> str:
        """Return the SVG as text; without animation for readers who prefer reduced motion."""
        still = "@media(prefers-reduced-motion:reduce){*{animation:none!important}}"
        styles = "".join([*self.styles, still, f"text{{font-family:{FONT}}}"])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self.width}" height="{self.height}" '
            f'viewBox="0 0 {self.width} {self.height}" role="img">'
            f"<title>{escape(self.description)}</title><style>{styles}</style>"
            + "\n".join(self.parts)
            + "</svg>\n"
        )


class Steps:
    """An endless animation of `count` steps and a hold at the end, as CSS of one picture."""

    def __init__(self, picture: Svg, count):
        self.picture, self.count = picture, count
        self.seconds = count * STEP + HOLD
        self.names = set()

    def appears(self, step) -> str:
        """Return attributes of a shape that is visible from this step on."""
        at = self._percent(step)
        return self._animation(f"a{step}", f"0%{{opacity:0}}{at}{{opacity:1}}")

    def only(self, step) -> str:
        """Return attributes of a shape that only this step shows, and not the still picture."""
        start, end = self._percent(step), self._percent(step + 1)
        frames = f"0%{{opacity:0}}{start}{{opacity:1}}{end}{{opacity:0}}"
        return self._animation(f"o{step}", frames, ";opacity:0")

    def moves(self, name, places) -> str:
        """Return attributes of a shape that moves by (x, y) pixels per step, and then disappears.

        In the still picture it is where it was added.
        """
        frames = "".join(
            f"{self._percent(step)}{{transform:translate({_number(x)}px,{_number(y)}px)}}"
            for step, (x, y) in enumerate(places)
        )
        return self._animation(name, f"{frames}{self._percent(self.count)}{{opacity:0}}")

    def _animation(self, name, frames, still="") -> str:
        if name not in self.names:
            self.names.add(name)
            self.picture.styles.append(
                f"@keyframes {name}{{{frames}}}"
                f".{name}{{animation:{name} {_number(self.seconds)}s step-end infinite{still}}}"
            )
        return f' class="{name}"'

    def _percent(self, step) -> str:
        return f"{100 * step * STEP / self.seconds:.3f}%"


def _colour(name) -> str:
    if name is None:
        return "none"
    return name if name.startswith(("#", "rgb", "var")) else var(name)


def _number(value) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
