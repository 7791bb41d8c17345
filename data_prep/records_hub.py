"""Documents streamed through `datasets`: `hub:NAME@SPLIT` or `hub:NAME:CONFIG@SPLIT`.

NAME is that of a dataset on the Hugging Face hub or the path of a folder that `datasets` can load. A piece is a shard
of the stream, mostly one file. The commit that the hub gave first is what every process reads.
"""

import functools
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.records import HUB_PREFIX, Document, InputError, InputFile, Part, document_of, missing_field
from data_prep.records_tables import STATE_FILE

_COMMIT = re.compile(r"@([0-9a-f]{40})\b")


@dataclass(frozen=True)
class _Stream:
    dataset: Any
    """A datasets.IterableDataset."""
    revision: str


def find_stream(given: str) -> InputFile:
    """The stream of that name, at its present commit. Raises InputError when it cannot be opened."""
    return InputFile(Path(given), given, size_bytes=0, revision=_open(given, None).revision)


def num_shards_of(file: InputFile) -> int:
    return int(_open_again(file).dataset.num_shards)


def hub_documents(part: Part, text_field: str) -> Iterator[Document]:
    """The documents of some shards, in order. Raises InputError naming stream, shard and record."""
    assert part.pieces is not None
    dataset = _open_again(part.file).dataset
    if dataset.features is not None:
        if text_field not in dataset.features:
            raise InputError(f"{part.file.name}: " + missing_field(text_field, dataset.features, "it has no column"))
        dataset = dataset.select_columns([text_field])  # so that pictures and sounds are not decoded
    num_shards = dataset.num_shards
    for shard in range(*part.pieces):
        number = 0
        try:
            for record in dataset.shard(num_shards, shard):
                yield _document(record, text_field)
                number += 1
        except Exception as error:  # of every kind: of the net, of datasets, of the format of the files
            raise InputError(
                f"{part.file.name}, shard {shard} of {num_shards}, record {number} (both from 0): {_in_short(error)}"
            ) from error


def _document(record: dict[str, Any], text_field: str) -> Document:
    if text_field not in record:
        raise ValueError(missing_field(text_field, record, "the record has no key"))
    return document_of(record[text_field], text_field)


def _open_again(file: InputFile) -> _Stream:
    stream = _open(file.name, file.revision if _is_commit(file.revision) else None)
    if stream.revision != file.revision:
        raise InputError(f"{file.name}: its files have changed since it was found; start again")
    return stream


@functools.lru_cache(maxsize=8)
def _open(given: str, commit: str | None) -> _Stream:
    """Kept, since opening asks the hub for a list of files, in each process once rather than for each unit."""
    import datasets  # here, since it takes a second that other kinds of input need not wait for

    name, config, split = _parsed(given)
    try:
        builder = datasets.load_dataset_builder(name, config or None, revision=commit)
        dataset = builder.as_streaming_dataset(split=split)
    except ConnectionError as error:
        raise InputError(
            f"{given}: the hub cannot be reached ({_in_short(error)}); where there is a network, save the dataset with"
            " Dataset.save_to_disk or as parquet, and give that directory here"
        ) from None
    except Exception as error:  # of every kind: datasets has no class of its own for what it cannot load
        raise InputError(f"{given}: datasets cannot load it ({_in_short(error)})") from error
    return _Stream(dataset, _revision(builder, split))


def _parsed(given: str) -> tuple[str, str, str]:
    """NAME, CONFIG (may be empty) and SPLIT."""
    name, _, split = given.removeprefix(HUB_PREFIX).rpartition("@")
    folder, slash, last = name.rpartition("/")
    last, colon, config = last.partition(":")
    name = folder + slash + last
    if not name or not split or (colon and not config):
        raise InputError(
            f"{given}: expected {HUB_PREFIX}NAME@SPLIT or {HUB_PREFIX}NAME:CONFIG@SPLIT, for instance"
            " hub:wikimedia/wikipedia:20231101.en@train"
        )
    if any(os.path.exists(Path(name) / made) for made in (STATE_FILE, "dataset_dict.json")):
        raise InputError(f"{given}: Dataset.save_to_disk made this directory; give it as it is: {name}")
    if os.path.exists(name) and not name.startswith(("/", ".")):
        raise InputError(
            f"{given}: {name} is also a path here, and datasets would read that; give"
            f" {HUB_PREFIX}./{name}@{split} if it is meant, or start from another directory"
        )
    return name, config, split


def _revision(builder: Any, split: str) -> str:
    """The commit; of what is no repository, a digest of names and times of its files."""
    found = _COMMIT.search(str(builder.base_path))
    if found:
        return found[1]
    files = (builder.config.data_files or {}).get(split, [])
    known = [builder.hash, list(files), [list(map(str, each)) for each in getattr(files, "origin_metadata", [])]]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()


def _is_commit(revision: str | None) -> bool:
    return revision is not None and len(revision) == 40


def _in_short(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
