"""Check the pages, and what is made of the program for them: `make docs`.

Links, headings and file names exist; pictures have alt texts and are small; pictures, notebook
and schema are what the program makes today; figures are those of `benchmarks/results/`. Prints each
problem, and exits with status 1 if there is one.
"""

import json
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent.parent))

import jupytext

from config import SCHEMA_FILE, json_schema
from docs.draw_pictures import MAX_BYTES, PICTURES, RESULTS, Sources
from docs.svg import MIN_TEXT, WIDTH
from reporting.palette import DARK, LIGHT
from system.errors import UserError

DOCS = Path(__file__).parent
PROJECT = DOCS.parent
README = PROJECT / "README.md"
PAGES = [README, PROJECT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
MAX_WORDS = 2800  # of the README: one page for learners, practitioners and researchers
MIN_ALT, MIN_BYTES = 60, 4_000
MADE_BY_HAND = {"teach.webp"}  # a film of the page in a browser
# Files that runs, commands and readers make.
MADE = (
    "config.json",
    "classify.py",
    "index.html",
    "disabled.csv",
    "mine.json",
    "versions.json",
    "history.csv",
    "status.json",
    "predictions.csv",
    "scores.csv",
    "test_predictions.csv",
    "test_submission.csv",
    "bad_clips.csv",
    "data_report.csv",
    "labels.csv",
    "train.csv",
    "validation.csv",
    "report.html",
    "stack.json",
)


def text_of(page: Path) -> str:
    """Return the page without its comments."""
    return re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)


# --- the pages ---------------------------------------------------------------------------------


def check_links(page: Path) -> list[str]:
    """Return the broken links and file names of a page."""
    text, problems = text_of(page), []
    links = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    for link in links:
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        if link.startswith("https://"):
            continue
        if not target.exists() or (heading and heading not in headings(target.read_text())):
            problems.append(f"{page.name}: {link}: no such file or heading")
    for name in re.findall(r"`([a-z_/]+\.(?:py|json|txt|toml|html|csv|md))`", text):
        places = (PROJECT, page.parent, RESULTS)
        if not any((place / name).exists() for place in places) and Path(name).name not in MADE:
            problems.append(f"{page.name}: {name}: no such file")
    return problems


def headings(text) -> list[str]:
    """Return the headings of a page as GitHub makes anchors of them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


def check_alt_texts(page: Path) -> list[str]:
    """Return the pictures of a page without a width or an alt text."""
    tags = re.findall(r"<img [^>]*>", text_of(page))
    return [
        f"{page.name}: {tag[:60]}: needs width and an alt text of {MIN_ALT} letters or more"
        for tag in tags
        if 'width="' not in tag or len("".join(re.findall(r'alt="([^"]*)"', tag))) < MIN_ALT
    ]


def check_length(page: Path) -> list[str]:
    prose = re.sub(r"```.*?```|<[^>]*>|\(http[^)]*\)", "", text_of(page), flags=re.DOTALL)
    words = len(prose.split())
    return [f"{page.name}: {words} words; at most {MAX_WORDS}"] if words > MAX_WORDS else []


# --- the pictures ------------------------------------------------------------------------------


def check_picture(path: Path) -> list[str]:
    """Return what is wrong with a picture's size, and with the colours and text of an SVG."""
    problems = []
    if not MIN_BYTES < path.stat().st_size < MAX_BYTES:
        problems.append(f"{path.name}: {path.stat().st_size} bytes")
    if path.name not in PICTURES and path.name not in MADE_BY_HAND:
        problems.append(f"{path.name}: docs/draw_pictures.py does not draw it")
    if path.suffix == ".svg":
        problems += [f"{path.name}: {each}" for each in check_svg(path.read_text())]
    return problems


def check_svg(picture: str) -> list[str]:
    """Return why an SVG does not fit into the README, or lacks a colour of a theme."""
    root = ElementTree.fromstring(picture)
    used = set(re.findall(r"var\(--(\w+)\)", picture))
    sizes = re.findall(r"font(?:-size)?: ?(?:\d{3} )?([\d.]+)px", picture)
    tests = {
        f"not {WIDTH} wide": float(root.get("width")) != WIDTH,
        "not 150 to 900 high": not 150 < float(root.get("height")) < 900,
        "an unknown colour": not {"card", "ink"} <= used <= set(LIGHT) == set(DARK),
        "no dark theme": "prefers-color-scheme:dark" not in picture,
        "text is too small": not sizes or min(map(float, sizes)) < MIN_TEXT,
    }
    return [problem for problem, is_wrong in tests.items() if is_wrong]


def check_drawn(folder: Path) -> list[str]:
    """Return the pictures that are not those that the program draws; those of a run are skipped."""
    problems, sources = [], Sources(checkpoint=None)
    for name, draw in PICTURES.items():
        try:
            picture = draw(sources)
        except UserError:  # it shows a run
            continue
        if (folder / name).read_text() != picture:
            problems.append(f"{name} is old; run docs/draw_pictures.py --only {name}")
    return problems


# --- what is made of the program ---------------------------------------------------------------


def check_schema(path: Path) -> list[str]:
    is_current = json.loads(path.read_text()) == json_schema()
    return [] if is_current else [f"{path.name} is old; run `python config.py`"]


def check_notebook(script: Path) -> list[str]:
    """Return whether the notebook beside the script has other cells, or any output."""
    notebook = json.loads(script.with_suffix(".ipynb").read_text())
    if cells(notebook) != cells(jupytext.reads(script.read_text(), "py:percent")):
        return [f"{script.stem}.ipynb is old; run `jupytext --to ipynb --update {script.name}`"]
    has_output = any(cell.get("outputs") for cell in notebook["cells"])
    return [f"{script.stem}.ipynb: clear its outputs"] if has_output else []


def cells(notebook) -> list[tuple[str, str]]:
    """Return (type, source) of each cell."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]


def check_figures(page: Path) -> list[str]:
    """Return the rows of a page's tables that name a file of results, but have other scores."""
    problems = []
    for line in text_of(page).splitlines():
        named = re.search(r"`(\w+)\.md`", line) if line.startswith("|") else None
        if named and (RESULTS / f"{named[1]}.json").exists():
            rows = json.loads((RESULTS / f"{named[1]}.json").read_text())["rows"]
            known = {f"{row['top1']:.1f}": interval_of(row) for row in rows}
            shown = re.findall(r"(\d+\.\d)( \([\d.]+ to [\d.]+\))?", line)
            shown = [(score, interval) for score, interval in shown if score in known]
            if not shown or any(interval not in ("", known[score]) for score, interval in shown):
                problems.append(
                    f"{page.name}: {named[1]}.json has {', '.join(map(''.join, known.items()))}"
                )
    return problems


def interval_of(row) -> str:
    low_and_high = row["top1_interval"]  # None, or of None: the clips' results are not known
    return "" if None in (low_and_high or [None]) else " ({:.1f} to {:.1f})".format(*low_and_high)


def check_charts(page: Path) -> list[str]:
    """Return the alt texts with figures that are not in the results that a chart shows."""
    problems = []
    for chart, name in (("approaches", "approaches_lips8"), ("remedies", "few_clips_parts")):
        contents = json.loads((RESULTS / f"{name}.json").read_text())
        known = [row["top1"] for row in contents["rows"]] + [*contents["baselines"].values()]
        (alt,) = re.findall(rf'{chart}\.svg"[^>]* alt="([^"]*)"', text_of(page))
        others = set(re.findall(r"\d+\.\d", alt)) - {f"{value:.1f}" for value in known}
        problems += [
            f"{page.name}: {chart}.svg: {value} is not in {name}.json" for value in sorted(others)
        ]
    return problems


def main() -> int:
    pictures = [path for path in sorted(DOCS.iterdir()) if path.suffix in (".svg", ".webp")]
    problems = check_length(README) + check_charts(README)
    for page in PAGES:
        problems += check_links(page) + check_alt_texts(page) + check_figures(page)
    for picture in pictures:
        problems += check_picture(picture)
    problems += check_drawn(DOCS) + check_schema(SCHEMA_FILE)
    problems += check_notebook(PROJECT / "walkthrough.py")
    print("\n".join(problems) or f"{len(PAGES)} pages and {len(pictures)} pictures are right")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
