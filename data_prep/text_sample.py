"""The text that a tokenizer is trained on: paragraphs from everywhere in some sources, so much of each as its share."""

import heapq
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from data_prep.cleaning import Cleaner, CleaningConfig
from data_prep.inputs import InputError, InputFile, Reading, all_documents, in_short
from data_prep.sources import DataDescription, find_source_inputs


@dataclass(frozen=True)
class TextSource:
    name: str
    """Of the source in a data description; empty for what `--input` names."""
    files: list[InputFile]
    reading: Reading
    cleaning: CleaningConfig = field(default_factory=CleaningConfig)
    share: float = 1.0
    """Of the sample; 0 for a source that gives nothing."""

    def paragraphs(self) -> Iterator[str]:
        """Of the documents as they are cut into tokens: cleaned, and without those that cleaning leaves out."""
        cleaner = Cleaner(self.cleaning)
        for document in all_documents(self.files, self.reading):
            yield from cleaner.clean(document) or ()


def described_sources(description: DataDescription) -> list[TextSource]:
    """The sources of a data description, with the shares that its weights give. Raises InputError naming the source."""
    files, shares = find_source_inputs(description), description.shares
    return [
        TextSource(name, files[name], source.reading, source.cleaning, shares[name])
        for name, source in description.sources.items()
    ]


class SourceSample:
    """What is kept of one source: of all paragraphs seen those with the highest random numbers, so that each is as
    likely as any other, however often less was to be kept."""

    def __init__(self, name: str, share: float) -> None:
        self.name, self.share = name, share
        self.num_bytes = 0
        """UTF-8 of what is kept."""
        self._random = random.Random(name)
        self._kept: list[tuple[float, int, str]] = []
        self._highest_dropped = -1.0
        self._seen = 0

    @property
    def is_whole(self) -> bool:
        """True when nothing of the source was left out."""
        return self._highest_dropped < 0.0

    @property
    def fill(self) -> float:
        """Bytes for each unit of share."""
        return self.num_bytes / self.share if self.share else 0.0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, paragraph: str) -> int:
        """Returns the bytes added: 0 for a paragraph that is left out."""
        draw, number = self._random.random(), self._seen
        self._seen += 1
        if draw <= self._highest_dropped:
            return 0
        heapq.heappush(self._kept, (draw, number, paragraph))
        num_bytes = len(paragraph.encode())
        self.num_bytes += num_bytes
        return num_bytes

    def drop_one(self) -> int:
        """Returns the bytes dropped."""
        self._highest_dropped, _, paragraph = heapq.heappop(self._kept)
        num_bytes = len(paragraph.encode())
        self.num_bytes -= num_bytes
        return num_bytes

    def paragraphs(self) -> list[str]:
        """In the order of the source."""
        return [paragraph for _, _, paragraph in sorted(self._kept, key=lambda entry: entry[1])]


def sample(texts: Iterable[tuple[str, float, Iterable[str]]], max_bytes: int) -> list[SourceSample]:
    """At most `max_bytes` of UTF-8 of several sources, (name, share, paragraphs), in one pass over each.

    Room that a source with too little text leaves goes to the others by their shares. Whenever there is too much, the
    source that is furthest above its share drops a paragraph: never more than `max_bytes` and a paragraph are held. At
    least one paragraph is kept. A source with the share 0 is not read.
    """
    samples: list[SourceSample] = []
    num_bytes = 0
    for name, share, paragraphs in texts:
        samples.append(SourceSample(name, share))
        for paragraph in paragraphs if share else ():
            num_bytes += samples[-1].add(paragraph)
            while num_bytes > max_bytes and sum(map(len, samples)) > 1:
                num_bytes -= max(samples, key=lambda each: each.fill).drop_one()
    return samples


def sample_sources(sources: list[TextSource], max_bytes: int) -> list[SourceSample]:
    """`sample` of their text. Raises InputError naming a source with a share that has no text."""
    samples = sample(((source.name, source.share, source.paragraphs()) for source in sources), max_bytes)
    for source, found in zip(sources, samples, strict=True):
        if source.share and found.is_whole and not len(found):
            where = f"sources.{source.name}: " if source.name else ""
            raise InputError(f"{where}{in_short(source.files)}: no text in it, nothing to train on")
    return samples


def describe_samples(sources: list[TextSource], samples: list[SourceSample]) -> dict[str, Any]:
    """For metadata: of each source in a description its share, its files, and what was taken of it."""
    return {
        source.name: {
            "share": source.share,
            "inputs": [file.name for file in source.files],
            "paragraphs": len(found),
            "bytes": found.num_bytes,
            "all_of_it": bool(source.share) and found.is_whole,
        }
        for source, found in zip(sources, samples, strict=True)
    }
