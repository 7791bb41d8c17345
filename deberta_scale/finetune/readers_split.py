"""A split of a task → its examples, from a folder of the benchmark's own files or one that `datasets` saved."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from deberta_scale.finetune.readers import Example, LeftOut, ReadError, Record
from deberta_scale.finetune.readers_files import is_saved_dataset, saved_records
from deberta_scale.finetune.tasks import Files, Task


@dataclass(frozen=True)
class Split:
    """The examples of a split, and what a person must be told of how they were read."""

    examples: list[Example]
    notes: tuple[str, ...]


def read_split(task: Task, folder: Path, split: str) -> Split:
    """Read `train`, or another split of the task, from `folder`.

    Raises ReadError when the task has no such split, a file is missing, damaged or empty, a column is missing, or a
    label is none of the task's.
    """
    if split not in task.files:
        raise ReadError(f"{task.name} has no split {split!r}; it has {', '.join(map(repr, task.files))}")
    examples: list[Example] = []
    left_out: Counter[str] = Counter()
    first_place: dict[str, str] = {}
    for found in _examples(task, folder, split):
        if isinstance(found, LeftOut):
            left_out[found.reason] += 1
            first_place.setdefault(found.reason, found.place)
        else:
            examples.append(found if found.id else replace(found, id=str(len(examples))))
    if not examples:
        raise ReadError(f"{folder}: the split {split!r} has no examples; copy or download its files again")
    notes = (f"{n:,} left out, the first at {first_place[reason]}: {reason}" for reason, n in left_out.items())
    return Split(examples, tuple(notes))


def _examples(task: Task, folder: Path, split: str) -> Iterator[Example | LeftOut]:
    records: Iterator[Record | LeftOut]
    if is_saved_dataset(folder):
        form, records = task.saved_form or task.form, saved_records(folder, split)
    else:
        form, records = task.form, chain.from_iterable(map(task.records, _files_of(folder, task.files[split])))
    labels = replace(task.labels, required=task.has_all_labels(split))
    for record in records:
        if isinstance(record, LeftOut):
            yield record
        else:
            yield from form(record, labels)


def _files_of(folder: Path, ways: Files) -> list[Path]:
    """The files of the one way that is there."""
    found = [paths for way in ways if (paths := _all_there(folder, way))]
    if len(found) > 1:
        both = " and ".join(str(paths[0].name) for paths in found)
        raise ReadError(f"{folder}: {both} are both there, and either would do; move one of them away")
    if not found:
        wanted = ", or ".join(" and ".join(way) for way in ways)
        there = sorted(path.name for path in folder.iterdir())[:20] if folder.is_dir() else []
        state = f"there are {', '.join(there)}" if there else "it is empty" if folder.is_dir() else "no such folder"
        raise ReadError(f"{folder}: expected {wanted} (or with .gz); {state}")
    return found[0]


def _all_there(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """Each name's file, plain or gzipped; nothing where one of them is missing."""
    paths = []
    for name in names:
        there = [path for path in (folder / name, folder / f"{name}.gz") if path.exists()]
        if len(there) > 1:
            raise ReadError(f"{folder}: {name} is there plain and gzipped; move one of them away")
        paths += there
    return paths if len(paths) == len(names) else []
