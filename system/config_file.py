"""From a JSON file to a `Config`, with every mistake reported at once."""

import difflib
import json
import os
import re
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config import SET_PREFIXES, Config
from system.errors import UserError, first_few


def load_config(path, overrides=(), sets=()) -> Config:
    """Reads the JSON file `path`, applies `overrides` and checks everything at once.

    overrides: strings `key=value`; the value is JSON, or a plain string if it is not.
    sets: those of `train`, `validation`, `test` whose folder and CSV must exist.
    Raises UserError with one line per problem: key, what was found, what is expected.
    """
    values = _read_json_object(path)
    values.pop("$schema", None)
    for override in overrides:
        key, value = parse_override(override)
        values[key] = value
    # Configs in circulation write "no checkpoint" in either way.
    if values.get("checkpoint") == "":
        values["checkpoint"] = None
    problems = _missing_paths(values, sets)
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        found = [problem for problem in error.errors() if not _is_other_alternative(problem)]
        problems = "\n".join(map(_describe, found)).split("\n") + problems
    if problems:
        count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''}"
        raise UserError(f"{path}: {count}\n" + "\n".join(f"  {problem}" for problem in problems))
    return config


def config_of_checkpoint(path, values) -> Config:
    """A config from the keys that a checkpoint keeps; raises UserError if this program's differ."""
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        names = first_few([".".join(map(str, problem["loc"])) for problem in error.errors()])
        raise UserError(f"{path}: its config is of another version ({names}); update") from None


def _read_json_object(path) -> dict[str, Any]:
    def refuse_duplicates(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise UserError(f"{path}: {', '.join(twice)}: given twice; keep one of them")
        return dict(pairs)

    def refuse_constant(name):
        raise UserError(f"{path}: {name} is no JSON number")

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: config cannot be read ({error}); check --config") from None
    try:
        values = json.loads(
            text, object_pairs_hook=refuse_duplicates, parse_constant=refuse_constant
        )
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: thousands of digits, too
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object {{...}}, found {type(values).__name__}")
    return values


def parse_override(override: str) -> tuple[str, Any]:
    """`lr=0.01` -> ("lr", 0.01); the value is JSON, or a plain string if it is not."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override}: expected key=value, for example --set lr=0.01")
    try:
        return key, json.loads(text)
    except (ValueError, RecursionError):
        return key, text


def _missing_paths(values, sets) -> list[str]:
    problems = []
    keys = [("labels_csv", os.path.isfile, "file")] if sets else []
    for set_name in sets:
        prefix = SET_PREFIXES[set_name]
        keys.append((f"{prefix}_data_folder", os.path.isdir, "folder"))
        keys.append((f"{prefix}_data_csv", os.path.isfile, "file"))
    for key, exists, kind in keys:
        value = values.get(key)
        if isinstance(value, str) and not exists(value):
            problems.append(f"{key}: no such {kind}: {value!r}; correct the path")
        elif value is None and key.startswith("test_"):
            problems.append(f"{key}: missing; a test run needs it")
    return problems


def _is_other_alternative(problem) -> bool:
    """Whether pydantic tried a value as the other of a key's two types.

    These are a number or a list, and a word or pairs of names.
    """
    if len(problem["loc"]) != 2 or not isinstance(problem["loc"][1], str):
        return False
    value = problem["input"]
    others = ["int_type"] if isinstance(value, list) else ["list_type"]
    others += ["dict_type"] if isinstance(value, str) else ["literal_error"]
    return problem["type"] in others


def _describe(problem) -> str:
    """One line for one of pydantic's errors: key, what was found, what is expected.

    Keys that do not go together are one error of pydantic's, but a line each.
    """
    names, positions = problem["loc"][:1], [p for p in problem["loc"][1:] if isinstance(p, int)]
    key = ".".join(map(str, [*names, *positions]))
    if problem["type"] == "extra_forbidden":
        hint = _nearest(key, Config.model_fields) or "remove it"
        return f"{key}: unknown key (found {_shorten(problem['input'])}); {hint}"
    if problem["type"] == "missing":
        return f"{key}: missing; {Config.model_fields[key].description}"
    if problem["type"] == "value_error" and not key:
        return str(problem["ctx"]["error"])
    expected = problem["msg"].replace("Input should be", "expected")
    is_choice = problem["type"] == "literal_error" and isinstance(problem["input"], str)
    if is_choice and (hint := _nearest(problem["input"], re.findall("'([^']*)'", expected))):
        expected = f"{hint} {expected}"
    return f"{key}: found {_shorten(problem['input'])}; {expected}"


def _nearest(word, words) -> str | None:
    """A question whether the nearest of `words` was meant, if one is near."""
    near = difflib.get_close_matches(word, words, n=1)
    return f'did you mean "{near[0]}"?' if near else None


def _shorten(value) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
