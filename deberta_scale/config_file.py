"""A YAML file and `key.sub=value` words → Config, or every problem said at once. Imports no torch.

Files with another schema, such as data descriptions, are read in the same way: `read_tree`, then `validate`.
"""

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from deberta_scale.config import Config, ConfigError, MixtureConfig

Schema = TypeVar("Schema", bound=BaseModel)
Location = tuple[int | str, ...]
"""Keys, and numbers of items, from the outermost section to a value."""


def load(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """The config of a pretraining run: `load_as`, and where `data.mixture` is the path of a file, the file's content
    takes its place."""
    return load_as(Config, Path(path), overrides, _open_mixture)


def load_as(
    schema: type[Schema],
    path: Path,
    overrides: Sequence[str] = (),
    complete: Callable[[dict[str, Any]], None] = lambda tree: None,
) -> Schema:
    """Read a YAML file, apply `key.sub=value` overrides in turn, validate. `complete` may change what was read, and
    again after each override.

    Raises ConfigError listing every problem, each with its key and, for unknown keys, the nearest known one.
    """
    tree = read_tree(path, schema)
    complete(tree)
    for override in overrides:
        _apply_override(tree, override)
        complete(tree)
    return validate(schema, tree, path)


def read_tree(path: Path, schema: type[BaseModel]) -> dict[str, Any]:
    """What a YAML file holds; a date in it is text, since no key of ours is one and directories are named so.

    Raises ConfigError naming the file for one that cannot be read, is no YAML, gives a key twice, or does not hold keys
    at all, with those that `schema` requires.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from None
    tree = _parsed(text, f"{path}: ")
    if not isinstance(tree, dict):
        required = [f"{name}:" for name, field in schema.model_fields.items() if field.is_required()]
        raise ConfigError(f"{path}: expected keys such as {' and '.join(required)}, found {type(tree).__name__}")
    return tree


def validate(
    schema: type[Schema],
    tree: dict[str, Any],
    path: Path,
    same_mistake_at: Callable[[Location], Location | None] = lambda location: None,
) -> Schema:
    """Raises ConfigError listing every problem of what `read_tree` found in `path`, each with its key and, for unknown
    keys, the nearest known one. A problem is left out when there is one at the location `same_mistake_at` of its own.
    """
    try:
        return schema.model_validate(tree)
    except RecursionError:
        raise ConfigError(f"{path}: an alias (*name) stands inside of what it repeats") from None
    except ValidationError as error:
        found = error.errors()
        locations = {problem["loc"] for problem in found}
        told = [_told(problem, schema) for problem in found if same_mistake_at(problem["loc"]) not in locations]
        raise ConfigError(f"{path}: {len(told)} problem(s)\n" + "\n".join(f"  {line}" for line in told)) from None


class _Loader(yaml.SafeLoader):
    """Of two values of one key, YAML would silently drop the first."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Looks at the keys as they are written, since merging (`<<: *name`) adds those of other mappings."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(
                    "while reading keys", node.start_mark, f"{key.value!r} is given twice", key.start_mark
                )
            seen.add((key.tag, key.value))
            key.value = sys.intern(key.value)  # PyYAML knows keys that it merges by their identity
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Leaves the one value of each key that counts, so that it counts as well where this mapping is merged."""
        super().flatten_mapping(node)
        pairs = {(key.tag, key.value if isinstance(key.value, str) else id(key)): (key, of) for key, of in node.value}
        node.value = list(pairs.values())


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _parsed(text: str, where: str) -> Any:
    """`where` begins the message of the ConfigError."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of too many digits
        raise ConfigError(f"{where}not valid YAML: {error}") from None
    except RecursionError:
        raise ConfigError(f"{where}not valid YAML: nested too deeply") from None


def _open_mixture(tree: dict[str, Any]) -> None:
    data = tree.get("data")
    if isinstance(data, dict) and isinstance(data.get("mixture"), str):
        try:
            data["mixture"] = read_tree(Path(data["mixture"]), MixtureConfig)
        except ConfigError as error:
            raise ConfigError(f"data.mixture: {error}") from None


def _apply_override(tree: dict[str, Any], override: str) -> None:
    """Set `key.sub=value` in a tree. Raises ConfigError when it is not of this form."""
    key, equals, text = override.partition("=")
    parts = key.split(".")
    if not equals or not all(parts):
        raise ConfigError(f"override {override!r}: expected key=value, for instance train.steps=100")
    value = _parsed(text, f"override {override!r}: ")
    node = tree
    for part in parts[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {part!r} holds a value, not a section")
    node[parts[-1]] = value


def _told(problem: ErrorDetails, schema: type[BaseModel]) -> str:
    """One of pydantic's errors for people: the key, what is wrong, the value given."""
    location = problem["loc"]
    key = ".".join(map(str, location))
    if problem["type"] == "extra_forbidden":
        section = _section_at(schema, location[:-1])
        nearest = difflib.get_close_matches(str(location[-1]), section.model_fields if section else [], n=1)
        hint = f"; did you mean '{'.'.join(map(str, (*location[:-1], *nearest)))}'?" if nearest else ""
        return f"{key}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"{key}: required, but not given"
    message = problem["msg"].removeprefix("Value error, ")
    shown = problem.get("input")
    given = f" (given: {shown!r})" if isinstance(shown, str | int | float | bool | list) else ""
    return f"{key}: {message}{given}" if key else message


def _section_at(schema: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """The section that stands there, also in a mapping or a list."""
    kind: Any = schema
    for part in location:
        if _is_section(kind):
            kind = kind.model_fields[part].annotation if part in kind.model_fields else None
        else:
            kind = {dict: get_args(kind)[1:], tuple: get_args(kind)}.get(get_origin(kind), (None,))[0]
        if get_origin(kind) in (Union, UnionType):
            kind = next((each for each in get_args(kind) if each is not type(None)), None)
    return kind if _is_section(kind) else None


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)
