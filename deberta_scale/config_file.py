"""A YAML file and `key.sub=value` words → Config, or every problem said at once. Imports no torch."""

import difflib
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from deberta_scale.config import Config, ConfigError


def load(path: Path | str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, apply `key.sub=value` overrides in turn, validate. Where `data.mixture` is the path of a file,
    the file's content takes its place.

    Raises ConfigError listing every problem, each with its key and, for unknown keys, the nearest known one.
    """
    path = Path(path)
    tree = _read(path, "model: and data:")
    _open_mixture(tree)
    for override in overrides:
        apply_override(tree, override)
        _open_mixture(tree)
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        problems = [describe_problem(problem) for problem in error.errors()]
        raise ConfigError(f"{path}: {len(problems)} problem(s)\n" + "\n".join(f"  {p}" for p in problems)) from None


def _read(path: Path, keys: str) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys such as {keys}, found {type(tree).__name__}")
    return tree


def _open_mixture(tree: dict[str, Any]) -> None:
    data = tree.get("data")
    if isinstance(data, dict) and isinstance(data.get("mixture"), str):
        try:
            data["mixture"] = _read(Path(data["mixture"]), "sources:")
        except ConfigError as error:
            raise ConfigError(f"data.mixture: {error}") from None


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `key.sub=value` in a tree read from YAML. Raises ConfigError when it is not of this form."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: expected key=value, for instance train.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not valid YAML: {error}") from None
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {part!r} holds a value, not a section")
    node[parts[-1]] = value


def _section_at(location: tuple[Any, ...]) -> type[BaseModel] | None:
    section: Any = Config
    for part in location:
        if not (isinstance(section, type) and issubclass(section, BaseModel) and part in section.model_fields):
            return None
        section = section.model_fields[part].annotation
        if get_origin(section) in (Union, UnionType):
            section = next((arg for arg in get_args(section) if arg is not type(None)), None)
    return section if isinstance(section, type) and issubclass(section, BaseModel) else None


def describe_problem(problem: ErrorDetails) -> str:
    """One of pydantic's errors for people: the key, what is wrong, the value given."""
    location = problem["loc"]
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        section = _section_at(tuple(location[:-1]))
        nearest = difflib.get_close_matches(str(location[-1]), section.model_fields if section else [], n=1)
        prefix = ".".join(map(str, location[:-1]))
        hint = f"; did you mean '{prefix + '.' if prefix else ''}{nearest[0]}'?" if nearest else ""
        return f"{key}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"{key}: required, but not given"
    message = problem["msg"].removeprefix("Value error, ")
    shown = problem.get("input")
    given = f" (given: {shown!r})" if isinstance(shown, str | int | float | bool | list) else ""
    return f"{key}: {message}{given}" if key else message
