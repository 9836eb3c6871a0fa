"""Flags before they are parsed: those of `--config` files and recipes, and which ones were given."""

import json
from pathlib import Path
from typing import Any

import yaml

from famus_hf.cli.program import fail

RECIPES = Path(__file__).parent / "recipes"


def named(flags: list[str]) -> set[str]:
    """Return the names of all flags that were given, on the command line or in a file."""
    return {flag.split("=")[0].removeprefix("--").replace("-", "_") for flag in flags if flag.startswith("--")}


def take_flag(argv: list[str], name: str) -> tuple[str | None, list[str]]:
    """Return the value of a flag, the last one if it is there several times, and the other arguments."""
    value, others, words = None, [], iter(argv)
    for word in words:
        flag, equals, beside = word.partition("=")
        if flag != name:
            others.append(word)
            continue
        value = beside if equals else next(words, None)
        if value is None:
            fail(f"{name} needs a value")
    return value, others


def with_values(argv: list[str]) -> list[tuple[str, list[str]]]:
    """Return each flag with its values."""
    groups: list[tuple[str, list[str]]] = []
    for word in argv:
        if word.startswith("--"):
            flag, equals, value = word.partition("=")
            groups.append((flag, [value] if equals else []))
        elif groups:
            groups[-1][1].append(word)
    return groups


def recipe_names() -> list[str]:
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def recipe_path(name: str) -> Path:
    """Return the file of a recipe. End the program where there is none."""
    if name not in recipe_names():
        fail(f"--recipe {name!r} is unknown: choose one of {', '.join(recipe_names())}")
    return RECIPES / f"{name}.yaml"


def methods_of_recipe(name: str) -> list[str]:
    """Return the methods that stand beside each other in the table which a recipe is of; empty where it names none."""
    methods: list[str] = _read_yaml(recipe_path(name)).get("about", {}).get("methods", [])
    return methods


def _read_yaml(path: Path) -> dict[str, Any]:
    """Return what a file maps names to. End the program where it is none."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        fail(f"--config {path} can't be read: {error}")
    if not isinstance(values, dict):
        fail(f"--config {path} must hold a mapping of flag names to values")
    return values


def flags_of_yaml(path: Path, known: set[str]) -> list[str]:
    """Return the file's values as flags, so that types are converted as on the command line (`1e-3` stays a number).

    `about` is for the reader: where a recipe's settings come from, and which are doubtful; its `methods` are what
    `famus-hf compare` trains.
    """
    flags: list[str] = []
    for name, value in _read_yaml(path).items():
        if name == "about":
            continue
        if f"--{name}" not in known:
            fail(f"--config {path} has the unknown name {name!r}: use the names of the flags, without dashes")
        if isinstance(value, list):
            flags += [f"--{name}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{name}={json.dumps(value) if isinstance(value, dict) else value}")
    return flags
