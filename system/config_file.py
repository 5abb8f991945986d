"""Reading a `Config` from a JSON file, with all mistakes reported at once."""

import difflib
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from config import FRAME_MODELS, IMAGENET_WEIGHTS, MODEL_OPTIONS, SET_PREFIXES, Config
from system.errors import UserError, summarize_validation

# Keys of earlier versions, in configs and checkpoints -> their names today.
RENAMED_KEYS = {"yardstick_clips": "baseline_clips"}
# Keys that only apply to a backbone with ImageNet's weights.
BACKBONE_KEYS = ("pretrained", "freeze", "pretrained_lr_scale", "feature_versions")


def load_config(
    path: str | Path, overrides: Iterable[str] = (), sets: Iterable[str] = ()
) -> Config:
    """Read the JSON file `path`, apply `overrides`, and return the validated config.

    overrides: strings `key=value`; a value that is not JSON is a plain string. Overriding `model`
    also drops the file's options of other networks.
    sets: names of sets (train, validation, test) whose folder and CSV must exist.
    Raises UserError with one line per problem: key, value found, value expected.
    """
    values = _read_json_object(path)
    values.pop("$schema", None)
    given = dict(map(parse_override, overrides))
    if "model" in given:
        values = _without_options_of_others(values, given)
    values |= given
    values = {RENAMED_KEYS.get(key, key): value for key, value in values.items()}
    # Existing configs have "" as well as null for no checkpoint.
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


def config_of_checkpoint(path: str | Path, values: dict) -> Config:
    """Return the config in a checkpoint; raise UserError if its keys are from another version."""
    try:
        values = {RENAMED_KEYS.get(key, key): value for key, value in values.items()}
        return Config.model_validate(values)
    except ValidationError as error:
        names = summarize_validation(error, with_reasons=False)
        raise UserError(f"{path}: its config is from another version ({names}); update") from None


def _read_json_object(path: str | Path) -> dict[str, Any]:
    def refuse_duplicates(pairs):
        keys = [key for key, _ in pairs]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise UserError(f"{path}: {', '.join(twice)}: given twice; remove one of them")
        return dict(pairs)

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: config cannot be read ({error}); check --config") from None
    try:
        values = json.loads(text, object_pairs_hook=refuse_duplicates)
    except UserError:
        raise
    except (ValueError, RecursionError) as error:  # ValueError: also thousands of digits
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object {{...}}, found {type(values).__name__}")
    return values


def parse_override(override: str) -> tuple[str, Any]:
    """Parse `lr=0.01` to ("lr", 0.01); a value that is not JSON is a plain string."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"--set {override}: expected key=value, for example --set lr=0.01")
    try:
        return key, json.loads(text)
    except (ValueError, RecursionError):
        return key, text


def _missing_paths(values: dict, sets: Iterable[str]) -> list[str]:
    """Return a message for each folder or file of the sets that does not exist."""
    problems = []
    keys = [("labels_csv", os.path.isfile, "file")] if sets else []
    for set_name in sets:
        prefix = SET_PREFIXES[set_name]
        keys.append((f"{prefix}_data_folder", os.path.exists, "folder"))  # or pack
        keys.append((f"{prefix}_data_csv", os.path.isfile, "file"))
    for key, exists, kind in keys:
        value = values.get(key)
        if isinstance(value, str) and not exists(value):
            problems.append(f"{key}: no such {kind}: {value!r}; correct the path")
        elif value is None and key.startswith("test_"):
            problems.append(f"{key}: missing; required by --test_only")
    return problems


def _is_other_alternative(problem) -> bool:
    """Return whether pydantic's error is about the other type of a key that accepts two.

    Such keys accept a number or a list, a word or a dict, or a number, true or false.
    """
    if len(problem["loc"]) != 2 or not isinstance(problem["loc"][1], str):
        return False
    value = problem["input"]
    others = ["int_type"] if isinstance(value, list) else ["list_type", "bool_type"]
    others += ["dict_type"] if isinstance(value, str) else ["literal_error"]
    return problem["type"] in others


def _describe(problem) -> str:
    """Return one line for a pydantic error: key, value found, value expected.

    Conflicts between keys are one pydantic error, with one line per conflict.
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


def _nearest(word: str, words: Iterable[str]) -> str | None:
    """Return `did you mean "..."?` with the closest of `words`, or None."""
    near = difflib.get_close_matches(word, words, n=1)
    return f'did you mean "{near[0]}"?' if near else None


def _shorten(value) -> str:
    """Return a value as JSON of at most 60 characters."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _without_options_of_others(values: dict, given: dict) -> dict:
    """Return the file's values without the options of networks other than the given one."""
    networks = {given["model"], *(given.get("members") or [])}
    has_backbone = bool(networks & {*FRAME_MODELS})
    is_of_backbone = values.get("pretrained") == IMAGENET_WEIGHTS and not has_backbone
    return {
        key: value
        for key, value in values.items()
        if networks & {*MODEL_OPTIONS.get(key, networks)}
        and not (is_of_backbone and key in BACKBONE_KEYS)
    }
