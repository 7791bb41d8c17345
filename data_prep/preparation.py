"""From the text of one source or several to their shards: duplicates looked for, units tokenized, results published."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from data_prep.cleaning import CleaningConfig, by_filter, sum_counts
from data_prep.encoding import why_not_by_words
from data_prep.inputs import InputError, InputFile, Reading, in_short, plan_units
from data_prep.near_duplicates import load_datasketch
from data_prep.passes import TextUnit, do_units
from data_prep.repeats import Repeats, RepeatsConfig, Unfinished
from data_prep.share import Share
from data_prep.tokenize_unit import UnitWorker, join_split, keep_loaded
from data_prep.workplace import PREPARATION_FILE, SPLITS, VALIDATION, Workplace
from deberta_scale.config_data import ConfigError
from deberta_scale.data.shards import MANIFEST_FILE
from deberta_scale.data.tokenizer import Tokenizer

_COUNTED = ("empty_documents", "cleaning", "deduplication")
BYTES_PER_TOKEN = 4
"""Of English text; only sets the size of a unit of work, so that it fills about one shard."""


@dataclass(frozen=True)
class Source:
    """Text that becomes one directory of shards."""

    files: list[InputFile]
    reading: Reading
    out: Path
    cleaning: CleaningConfig


class Preparation:
    """Of sources that are tokenized alike, and compared with each other where duplicates are looked for.

    `find_repeats` first; when it is done `tokenize` for each source, and `close`.
    """

    def __init__(
        self,
        sources: list[Source],
        out: Path,
        tokenizer_dir: Path,
        *,
        validation_fraction: float,
        shard_tokens: int,
        repeats: RepeatsConfig,
        share: Share,
        workers: int,
    ) -> None:
        """`out`: the directory of all sources, or of the only one. Raises InputError, TokenizerError, ConfigError when
        a language function cannot be imported, or ValueError when near-duplicates are looked for without the library
        for it."""
        if repeats.near_duplicates is not None:
            load_datasketch()
        self.sources, self.share = sources, share
        self._tokenizer_dir, self._validation_fraction = tokenizer_dir, validation_fraction
        self._shard_tokens, self._workers = shard_tokens, workers
        self._tokenizer = Tokenizer.load(tokenizer_dir)
        keep_loaded(self._tokenizer)
        self._units = [
            [
                TextUnit(parts, source.reading, source.cleaning)
                for parts in plan_units(source.files, source.reading, shard_tokens * BYTES_PER_TOKEN)
            ]
            for source in sources
        ]
        self._comparing = Workplace(_beside(out, ".repeats"), self._plan_of_comparing(repeats))
        self._repeats = Repeats(self._comparing.partial, sum(map(len, self._units)), repeats)
        self._workplaces = [
            Workplace(source.out, self._plan_of(source, len(units)))
            for source, units in zip(sources, self._units, strict=True)
        ]

    @property
    def looks_for_repeats(self) -> bool:
        return self._repeats.config.is_on

    @cached_property
    def way_of_cutting(self) -> str:
        """How text becomes ids, for people."""
        reason = why_not_by_words(self._tokenizer)
        return "word by word" if reason is None else f"by the tokenizer itself, since {reason}"

    @property
    def place_of_repeats(self) -> Path:
        """Where duplicates are looked for, until all sources are published."""
        return self._comparing.partial

    def is_published(self, source: Source) -> bool:
        """Whether `source.out` is the result of this very plan already."""
        return self._workplaces[self.sources.index(source)].is_published

    @property
    def is_done(self) -> bool:
        """Whether all sources are published."""
        return all(workplace.is_published for workplace in self._workplaces)

    def find_repeats(self) -> Unfinished | None:
        """Do this process's share of looking for duplicates; None when nothing of that is left to anybody.

        Raises InputError, or ValueError when what is left there is of another run; a process that works alone then
        leaves nothing behind.
        """
        if not self.looks_for_repeats:
            if self._comparing.partial.exists():
                raise ValueError(
                    f"{self._comparing.partial} was left by a run that looked for duplicates; run that command again to"
                    " finish it, or remove the directory"
                )
            return None
        if self.is_done:
            return None
        self._comparing.open()
        with self._leaving_nothing(self._comparing):
            return self._repeats.find(list(chain.from_iterable(self._units)), self.share, self._workers)

    def tokenize(self, source: Source) -> dict[str, Any] | None:
        """Do this process's share of a source's units and, where it publishes, put the shards of both splits together.

        Returns the manifests by split, and the counts of `empty_documents`, `cleaning` and, where duplicates were
        looked for, `deduplication`; None where another process publishes. When the result is that of this very plan
        already, nothing is done. Raises InputError, or ValueError when `source.out` is in use otherwise or a split
        would be empty; a process that works alone then leaves nothing behind.
        """
        number = self.sources.index(source)
        workplace, units = self._workplaces[number], self._units[number]
        if workplace.is_published:
            workplace.discard()
            return _published(source.out) if self.share.publishes else None
        workplace.open()
        with self._leaving_nothing(workplace, self._comparing):
            worker = UnitWorker(
                workplace.units,
                self._tokenizer_dir,
                self._tokenizer.sha256,
                self._validation_fraction,
                self._shard_tokens,
                self._repeats if self.looks_for_repeats else None,
                sum(map(len, self._units[:number])),
            )
            do_units(worker, units, self.share.of(range(len(units))), self._workers)
            self.share.wait_for_all()
            if not self.share.publishes:
                return None
            fragments = [workplace.units.fragment(unit) for unit in range(len(units))]
            counts = self._counts(fragments)
            self._check_text_is_left(source, fragments, counts)
        with self._leaving_nothing(workplace):  # but what was found of duplicates, which another split needs too
            self._check_splits(source, fragments)
        return self._publish(workplace, fragments, counts)

    def close(self) -> None:
        """When all sources are published, by whom that is to be done."""
        if self.share.publishes and self.looks_for_repeats:
            self._comparing.discard()

    def _plan_of(self, source: Source, num_units: int) -> dict[str, Any]:
        plan = {
            "format_version": 1,
            "input": [file.identity() for file in source.files],
            "reading": dataclasses.asdict(source.reading),
            "tokenizer_sha256": self._tokenizer.sha256,
            "cleaning": source.cleaning.describe(),
            "validation_fraction": self._validation_fraction,
            "shard_tokens": self._shard_tokens,
            "units": num_units,
        }
        if self.looks_for_repeats:
            told = json.dumps(self._comparing.told_plan, sort_keys=True)
            compared = {"sources": len(self.sources), "plan_sha256": hashlib.sha256(told.encode()).hexdigest()}
            plan |= self._repeats.config.describe() | {"compared": compared}
        return plan

    def _plan_of_comparing(self, repeats: RepeatsConfig) -> dict[str, Any]:
        return {
            "format_version": 1,
            "input": [file.identity() for source in self.sources for file in source.files],
            "sources": [
                {
                    "files": len(source.files),
                    "reading": dataclasses.asdict(source.reading),
                    "cleaning": source.cleaning.describe(),
                    "units": len(units),
                }
                for source, units in zip(self.sources, self._units, strict=True)
            ],
            "shard_tokens": self._shard_tokens,  # which the cut into units hangs on
            **repeats.describe(),
        }

    @contextmanager
    def _leaving_nothing(self, *workplaces: Workplace) -> Iterator[None]:
        try:
            yield
        except (InputError, ConfigError, UnicodeError):
            if self.share.count == 1:
                for workplace in workplaces:
                    workplace.discard()
            raise

    def _counts(self, fragments: list[dict[str, Any]]) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "empty_documents": sum(fragment["empty_documents"] for fragment in fragments),
            "cleaning": by_filter(sum_counts(fragment["cleaning"] for fragment in fragments)),
        }
        if self.looks_for_repeats:
            counts["deduplication"] = by_filter(sum_counts(fragment["deduplication"] for fragment in fragments))
        return counts

    def _publish(self, workplace: Workplace, fragments: list[dict[str, Any]], counts: dict[str, Any]) -> dict[str, Any]:
        manifests: dict[str, Any] = {}

        def fill(directory: Path) -> dict[str, Any]:
            for split in SPLITS:
                manifests[split] = join_split(split, directory, workplace.units, fragments, self._tokenizer)
            (directory / "tokenizer").mkdir()
            # With the version that cut, which a released one does not say.
            for name, content in self._tokenizer.files().items():
                (directory / "tokenizer" / name).write_bytes(content)
            return counts

        workplace.publish(fill)
        return counts | manifests

    def _check_text_is_left(self, source: Source, fragments: list[dict[str, Any]], counts: dict[str, Any]) -> None:
        """Raises InputError when there is none."""
        compared = counts.get("deduplication", {}).get("all", {"documents_in": 0, "documents_out": 0})
        if compared["documents_in"] and not compared["documents_out"]:
            raise InputError(
                f"{in_short(source.files)}: all of it repeats what earlier sources hold; leave this source out of the"
                " description, or let it stand before the others"
            )
        if not any(_filled(fragments).values()):
            raise InputError(f"{in_short(source.files)}: no text in it, nothing to tokenize")

    def _check_splits(self, source: Source, fragments: list[dict[str, Any]]) -> None:
        """Raises InputError when one of the splits would be empty."""
        kept = ""
        if self.looks_for_repeats:
            kept = (
                f". Another fraction goes on from the duplicates that were found, in {self.place_of_repeats}; remove"
                " that for other documents"
            )
        for split, is_filled in _filled(fragments).items():
            if not is_filled:
                change = "larger" if split == VALIDATION else "smaller"
                raise InputError(
                    f"{in_short(source.files)}: no document fell into the {split} split; give a {change}"
                    f" --validation-fraction, or validation_fraction in a data description (now"
                    f" {self._validation_fraction:g}), or more documents (plain text: see --document-boundary, or"
                    f" document_boundary there){kept}"
                )


def _filled(fragments: list[dict[str, Any]]) -> dict[str, bool]:
    """By split, whether a document fell into it."""
    return {split: any(fragment["shards"][split] for fragment in fragments) for split in SPLITS}


def _beside(directory: Path, ending: str) -> Path:
    directory = directory.resolve()
    return directory.with_name(directory.name + ending)


def _published(out: Path) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((out / PREPARATION_FILE).read_text(encoding="utf-8"))
    manifests = {split: json.loads((out / split / MANIFEST_FILE).read_text(encoding="utf-8")) for split in SPLITS}
    return manifests | {key: facts[key] for key in _COUNTED if key in facts}
