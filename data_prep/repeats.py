"""Which documents and paragraphs of a corpus repeat earlier ones: what happens before text is cut into tokens.

    OUT.repeats.partial/plan.json     which input, cleaning and config; another one does not go on here
                        digests/      pass 1: of every unit of every source what `deduplication` and `near_duplicates`
                                      compare
                        paragraphs/   pass 2, where near-duplicates are omitted and paragraphs too: the digests of the
                                      paragraphs of the documents that stay
                        merged/       after each pass: what repeats what

All sources of a data description are compared with each other: of what is equal or alike the first in input order
stays, sources being in the order of the description. The pass that tokenizes asks for what is found, unit by unit.

Units are shared out like those of the tokenizing pass. What follows a pass is shared out too by processes that can wait
for each other. Elements of a job array cannot: whichever finds the pass complete does all that follows, and begins with
its share, so that several that find it complete do little twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.cleaning import Cleaner
from data_prep.deduplication import (
    DOCUMENTS,
    PARAGRAPHS,
    DeduplicationConfig,
    UnitDigests,
    Unrepeated,
    groups_among,
    merge_range,
    merged_ranges,
    ranges_needed,
    repeats_among,
    repeats_in,
)
from data_prep.inputs import InputError
from data_prep.near_duplicates import (
    BANDS,
    DECISION_FILE,
    NearDuplicateConfig,
    UnitSignatures,
    near_duplicates_in,
    write_near_duplicates,
)
from data_prep.passes import TextUnit, do_units, in_order
from data_prep.share import Share
from data_prep.workplace import Units
from deberta_scale.config_data import Section


@dataclass(frozen=True)
class Pass:
    """One reading of all text that finds something to compare."""

    name: str
    kinds: tuple[str, ...]
    """Of digests that are written: DOCUMENTS, PARAGRAPHS."""
    writes_signatures: bool = False
    omits_documents: bool = False
    """Whether documents that an earlier pass found are passed over."""

    @property
    def merged_names(self) -> tuple[str, ...]:
        return (*self.kinds, BANDS) if self.writes_signatures else self.kinds


class RepeatsConfig(Section):
    deduplication: DeduplicationConfig = DeduplicationConfig()
    near_duplicates: NearDuplicateConfig | None = None

    @property
    def is_on(self) -> bool:
        return self.deduplication.documents or self.deduplication.paragraphs or self.near_duplicates is not None

    @property
    def passes(self) -> list[Pass]:
        kinds = {DOCUMENTS: self.deduplication.documents, PARAGRAPHS: self.deduplication.paragraphs}
        wanted = tuple(kind for kind, is_wanted in kinds.items() if is_wanted)
        if self.near_duplicates is None:
            return [Pass("digests", wanted)] if wanted else []
        first = Pass("digests", tuple(kind for kind in wanted if kind != PARAGRAPHS), writes_signatures=True)
        return [first, Pass("paragraphs", (PARAGRAPHS,), omits_documents=True)] if PARAGRAPHS in wanted else [first]

    def describe(self) -> dict[str, Any]:
        """For a plan: everything that decides what is omitted. Empty when nothing is."""
        if not self.is_on:
            return {}
        near = self.near_duplicates
        return {
            "deduplication": self.deduplication.model_dump(mode="json"),
            "near_duplicates": None if near is None else near.describe(),
        }


@dataclass(frozen=True)
class Unfinished:
    """A pass of which units are missing that others have to do."""

    number: int
    """From 1."""
    passes: int
    """All that read the text, the tokenizing one included."""
    missing_units: int


@dataclass(frozen=True)
class Repeats:
    """Finds what repeats, and tells it. Small, so that it can be sent to any process: all it knows is on disk."""

    place: Path
    num_units: int
    """Of all sources together."""
    config: RepeatsConfig

    @property
    def merged(self) -> Path:
        return self.place / "merged"

    def finished(self, which: Pass) -> Units:
        return Units(self.place / which.name)

    def find(self, units: list[TextUnit], share: Share, workers: int) -> Unfinished | None:
        """Do this process's share; None when all is found, by this process or others.

        Raises InputError naming file and line.
        """
        passes = self.config.passes
        for number, which in enumerate(passes, 1):
            finished = self.finished(which)
            do_units(_Digester(self, which), units, share.of(range(self.num_units)), workers)
            share.wait_for_all()
            if missing := 0 if share.can_wait else sum(not finished.is_done(n) for n in range(self.num_units)):
                return Unfinished(number, len(passes) + 1, missing)
            self._merge(which, share, workers)
        return None

    def filter_of(self, unit: int, kinds: Sequence[str] = (DOCUMENTS, PARAGRAPHS)) -> Unrepeated:
        """What omits a unit's documents, near-duplicates among them, and paragraphs; `kinds`: those found by now."""
        found = {
            kind: repeats_in(unit, self.finished(which).directory(unit), merged_ranges(self.merged, kind), kind)
            for which in self.config.passes
            for kind in which.kinds
            if kind in kinds
        }
        near = near_duplicates_in(unit, self.merged / DECISION_FILE) if self.config.near_duplicates else None
        return Unrepeated(found.get(DOCUMENTS), near, found.get(PARAGRAPHS))

    def check_same_text(self, unit: int, text: TextUnit, counts: dict[str, int]) -> None:
        """Raises InputError when cleaning counted otherwise than in the first pass: what is found would be omitted from
        the wrong text."""
        if self.finished(self.config.passes[0]).fragment(unit)["cleaning"] != counts:
            raise InputError(
                f"{text.parts[0].file.path}: read a second time, cleaning left other text than when duplicates were"
                " looked for; either the file has changed, or the language function does not always give the same code."
                f" Start again, and if {self.place} is still there, remove it first"
            )

    def merge_range(self, which: Pass, name: str, number: int, num_ranges: int) -> None:
        found_in = groups_among if name == BANDS else repeats_among
        merge_range(self._directories(which), name, number, num_ranges, self.merged, found_in)

    def _merge(self, which: Pass, share: Share, workers: int) -> None:
        self.merged.mkdir(exist_ok=True)
        for name in which.merged_names:
            num_ranges = ranges_needed(self._directories(which), name)
            numbers = list(share.of(range(num_ranges)))
            if not share.can_wait:
                numbers += sorted(set(range(num_ranges)) - set(numbers))
            for _ in in_order(self.merge_range, [(which, name, number, num_ranges) for number in numbers], workers):
                pass
        share.wait_for_all()
        near = self.config.near_duplicates
        if which.writes_signatures and near is not None:
            if share.publishes or not share.can_wait:
                write_near_duplicates(near, self._directories(which), self.merged)
            share.wait_for_all()

    def _directories(self, which: Pass) -> list[Path]:
        return [self.finished(which).directory(number) for number in range(self.num_units)]


@dataclass(frozen=True)
class _Digester:
    repeats: Repeats
    which: Pass

    @property
    def finished(self) -> Units:
        return self.repeats.finished(self.which)

    def do(self, number: int, unit: TextUnit) -> None:
        config = self.repeats.config
        cleaner = Cleaner(unit.cleaning)
        earlier = self.repeats.filter_of(number, (DOCUMENTS,)) if self.which.omits_documents else None
        with self.finished.writing(number) as (directory, fragment):
            digests = UnitDigests(directory, config.deduplication, self.which.kinds)
            signatures = None
            if self.which.writes_signatures and config.near_duplicates is not None:
                signatures = UnitSignatures(directory, config.near_duplicates)
            for document in unit.documents(cleaner):
                digests.add(document, is_kept=earlier is None or earlier.take(document) is not None)
                if signatures is not None:
                    signatures.add(document)
            digests.finish()
            if signatures is not None:
                signatures.finish()
            if earlier is not None:
                self.repeats.check_same_text(number, unit, cleaner.counts)
            fragment["cleaning"] = cleaner.counts
