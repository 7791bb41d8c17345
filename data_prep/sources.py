"""A data description, configs/data/*.yaml: which sources there are, how to read, filter and weight them.

Paths are seen from the working directory, as those of every config. Each source becomes shards of its own, so that
weights can change without cutting the text again.
"""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data_prep.cleaning import CleaningConfig
from data_prep.deduplication import DeduplicationConfig
from data_prep.inputs import InputError, InputFile, Reading, find_inputs
from data_prep.near_duplicates import NearDuplicateConfig
from deberta_scale.config_data import Section, Weight
from deberta_scale.config_file import Location, read_tree, validate

DEFAULT_VALIDATION_FRACTION = 0.05


class SourceDescription(Section):
    paths: Annotated[tuple[str, ...], Field(min_length=1)]
    """Files, directories, patterns, or hub:NAME:CONFIG@SPLIT, as for `--input`."""
    text_field: Annotated[str, Field(min_length=1)] = "text"
    """Key of the text in JSON lines, or column in tables."""
    document_boundary: Literal["blank-line", "file"] = "blank-line"
    """What separates documents in plain text."""
    weight: Weight = 1.0
    """Share of the training samples, relative to the other sources' weights."""
    cleaning: CleaningConfig = CleaningConfig()
    """In the file, what differs for this source from the `cleaning` of all; here, the two together."""

    @field_validator("paths", mode="before")
    @classmethod
    def _is_a_list(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"expected a list, for instance [{value}]")
        return value

    @property
    def reading(self) -> Reading:
        return Reading(self.document_boundary, self.text_field)


class DataDescription(Section):
    tokenizer: Path
    """Directory written by data_prep/train_tokenizer.py, or a released one."""
    sources: Annotated[dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")], SourceDescription], Field(min_length=1)]
    """By name, which names a directory too."""
    validation_fraction: Annotated[float, Field(gt=0.0, lt=1.0)] = DEFAULT_VALIDATION_FRACTION
    """Share of the documents held out for evaluation."""
    cleaning: CleaningConfig = CleaningConfig()
    """Which documents to leave out, and what to change in the others, in all sources that do not say otherwise."""
    deduplication: DeduplicationConfig = DeduplicationConfig()
    """Which exact repeats to omit, after cleaning. All sources are compared with each other, as one corpus: the first
    stays, in the order of the sources and of their files. So it is said once for all, and results change with any
    source."""
    near_duplicates: NearDuplicateConfig | None = None
    """Omit documents that nearly repeat another one, of all sources too; null does not look for them."""

    @model_validator(mode="before")
    @classmethod
    def _cleaning_of_all(cls, tree: Any) -> Any:
        """Give it to each source, so that what a source says itself is checked together with it."""
        if not (
            isinstance(tree, dict) and isinstance(tree.get("cleaning"), dict) and isinstance(tree.get("sources"), dict)
        ):
            return tree
        sources = {
            name: source | {"cleaning": _merged(tree["cleaning"], source.get("cleaning", {}))}
            if isinstance(source, dict) and isinstance(source.get("cleaning", {}), dict)
            else source
            for name, source in tree["sources"].items()
        }
        return tree | {"sources": sources}

    @model_validator(mode="after")
    def _has_weight(self) -> "DataDescription":
        if not any(source.weight for source in self.sources.values()):
            raise ValueError("the weights of all sources are 0; give at least one of them a weight")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The weights of the sources, summing to 1."""
        total = sum(source.weight for source in self.sources.values())
        return {name: source.weight / total for name, source in self.sources.items()}


def load_description(path: Path | str) -> DataDescription:
    """Read and validate a YAML file.

    Raises ConfigError listing every problem, each with its key and, for unknown keys, the nearest known one.
    """
    path = Path(path)
    return validate(DataDescription, read_tree(path, DataDescription), path, same_mistake_at=_location_of_all)


def find_source_inputs(description: DataDescription) -> dict[str, list[InputFile]]:
    """The files of each source, in the order of the description.

    Raises InputError naming the source for what `find_inputs` refuses, and for a file that two sources have.
    """
    files: dict[str, list[InputFile]] = {}
    owners: dict[Path, str] = {}
    for name, source in description.sources.items():
        try:
            files[name] = find_inputs([Path(each) for each in source.paths])
        except InputError as error:
            raise InputError(f"sources.{name}: {error}") from None
        for file in files[name]:
            owner = owners.setdefault(file.place, name)
            if owner != name:
                raise InputError(
                    f"sources.{name}: {file.path} is in sources.{owner} too; its documents would count double, so"
                    " leave it out of one"
                )
    return files


def _location_of_all(location: Location) -> Location | None:
    """Where the `cleaning` of all sources holds what one of them holds too, and with it the same mistake."""
    is_of_source = len(location) > 2 and (location[0], location[2]) == ("sources", "cleaning")
    return location[2:] if is_of_source else None


def _merged(general: dict[str, Any], special: dict[str, Any]) -> dict[str, Any]:
    """Sections merged key by key, everything else replaced."""
    return general | {
        key: _merged(general[key], value) if isinstance(value, dict) and isinstance(general.get(key), dict) else value
        for key, value in special.items()
    }
