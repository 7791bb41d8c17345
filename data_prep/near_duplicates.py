"""Documents that nearly repeat another one, found by MinHash; of each cluster the first in input order stays.

A document is taken as the set of its shingles: every `shingle_words` words that follow each other, in lower case. Two
documents are alike by the Jaccard similarity of their sets; MinHash (Broder 1997), of which datasketch has the
permutations, estimates it from signatures. To be compared at all, two documents must agree in one of the `bands` of
their signatures, which happens with probability 1 - (1 - s**rows)**bands at similarity s; they are near-duplicates when
their signatures then agree in `threshold` of all places. A cluster is everything joined by such pairs. Of documents
that share a band each is compared with each, up to 16,384 of them (band_groups.MOST_COMPARED).

    pass 1   every unit writes signatures and digests of bands into its directory: UnitSignatures
    merge    `deduplication.merge_range` with the name BANDS finds the groups of documents that share a band
    decide   one process compares the signatures in each group, and finds the clusters: write_near_duplicates

so that nothing depends on who did which unit, or on how the input is cut into units. Per document: on disk
4 * permutations + 24 * bands bytes (896 by default); in memory nothing while it has no near-duplicate, and about 150
bytes when it has. Documents that agree in a band are in memory together while their range is merged, at 100 bytes each.
datasketch's own index would keep 5.5 kB of every document in memory, which is why it is not used.
"""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, model_validator

from data_prep.deduplication import DIGEST_BYTES, RUN_RECORDS, RunWriter, merged_ranges
from data_prep.records import Document
from data_prep.scripts_of_text import words_of
from deberta_scale.config_data import Fraction, PositiveInt, Section
from deberta_scale.durable import written_durably

BANDS = "bands"
DECISION_FILE = "near_duplicates.npy"
SCHEME = "affine32"
"""datasketch's name for the permutations a * h + b mod 2**32, which it promises to keep."""

_METHOD_VERSION = 2
"""Raised when other documents count as near-duplicates with the same config: of words, or of who is compared."""
_SIGNATURES_FILE = "signatures.bin"
_SHINGLES_AT_ONCE = 2048
_MULTIPLIER = 0x9E3779B97F4A7C15
_NUMBER_BITS = 40
"""Of a place in input order; the other 24 are the unit's."""


class NearDuplicateConfig(Section):
    threshold: Annotated[Fraction, Field(gt=0.0)] = 0.8
    """Share of the shingles of two documents, of those that either has, that both have."""
    permutations: PositiveInt = 128
    """Places of a signature: the estimated similarity s is off by sqrt(s * (1 - s) / permutations), 0.035 at 0.8."""
    bands: PositiveInt = 16
    """More find more, and compare more in vain: 16 of 8 rows find 95 % of the pairs of similarity 0.8."""
    shingle_words: PositiveInt = 5
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1

    @model_validator(mode="after")
    def _consistent(self) -> "NearDuplicateConfig":
        if self.permutations % self.bands:
            raise ValueError(
                f"bands {self.bands} do not divide permutations {self.permutations}, so that some would be for nothing"
            )
        return self

    def chance_of_comparison(self, similarity: float) -> float:
        """That two documents of this similarity agree in a band."""
        rows = self.permutations // self.bands
        return float(1.0 - (1.0 - similarity**rows) ** self.bands)

    def describe(self) -> dict[str, Any]:
        """For a manifest: everything that decides which documents are near-duplicates."""
        chances = {f"{s:.2f}": round(self.chance_of_comparison(s), 4) for s in (0.5, 0.6, 0.7, 0.8, 0.9)}
        rows = self.permutations // self.bands
        return self.model_dump() | {
            "method_version": _METHOD_VERSION,
            "rows_per_band": rows,
            "scheme": f"datasketch {SCHEME}",
            "chance_of_comparison": chances,
        }


def load_datasketch() -> Any:
    """The library, which is slow to import. Raises ValueError saying how to install it."""
    try:
        import datasketch
    except ImportError as error:
        raise ValueError(
            f"near-duplicates need the library datasketch, which cannot be imported ({error}); install it with pip"
            " install 'deberta-scale[prepare]', or leave near_duplicates out of the config"
        ) from error
    return datasketch


class UnitSignatures:
    """Writes the signatures of a unit's documents, one row for each, and the digests of their bands. Publishing the
    directory around them is the caller's part.

    A document without a word has no band, and so no near-duplicate.
    """

    def __init__(self, directory: Path, config: NearDuplicateConfig, *, run_records: int = RUN_RECORDS) -> None:
        """Raises ValueError when datasketch is missing."""
        self.config = config
        self._make_signature = load_datasketch().MinHash
        self._permutations = self._make_signature(config.permutations, seed=config.seed, scheme=SCHEME).permutations
        self._file = (directory / _SIGNATURES_FILE).open("wb")
        self._bands = RunWriter(directory, BANDS, keep_repeats=True, run_records=run_records)
        self._num_documents = 0

    def add(self, document: Document) -> None:
        """The next document that cleaning left."""
        shingles = shingles_of(document, self.config.shingle_words)
        signature = self.signature_of(shingles)
        self._file.write(signature.tobytes())
        if len(shingles):
            for band, rows in enumerate(signature.reshape(self.config.bands, -1)):
                digest = hashlib.blake2b(rows.tobytes(), digest_size=DIGEST_BYTES, salt=band.to_bytes(4, "little"))
                self._bands.add(digest.digest(), self._num_documents)
        self._num_documents += 1

    def signature_of(self, shingles: np.ndarray) -> np.ndarray:
        """[permutations] uint32, from [number of shingles] uint32."""
        sketch = self._make_signature(
            self.config.permutations, self.config.seed, hashfunc=int, permutations=self._permutations, scheme=SCHEME
        )
        for start in range(0, len(shingles), _SHINGLES_AT_ONCE):  # what fits a cache
            sketch.update_batch(shingles[start : start + _SHINGLES_AT_ONCE].tolist())
        return sketch.hashvalues.astype("<u4", copy=False)

    def finish(self) -> None:
        self._file.close()
        self._bands.finish()


def shingles_of(document: Document, shingle_words: int) -> np.ndarray:
    """[number of shingles] uint32: a hash of each; of all words together where there are fewer than `shingle_words`."""
    words = words_of("\n".join(document).lower())
    hashes = np.array([zlib.crc32(word.encode()) for word in words], dtype=np.uint64)
    width = min(shingle_words, len(hashes))
    if not width:
        return np.empty(0, dtype=np.uint32)
    hashes = _mixed(hashes)
    joined = np.zeros(len(hashes) - width + 1, dtype=np.uint64)
    for place in range(width):
        joined *= np.uint64(_MULTIPLIER)
        joined += hashes[place : place + len(joined)]
    return (_mixed(joined) >> np.uint64(32)).astype(np.uint32)


def write_near_duplicates(config: NearDuplicateConfig, units: Sequence[Path], merged: Path) -> Path:
    """Compare the documents that share a band, find the clusters, and write into `merged` all but their firsts;
    returns the file, which is not made again. `units`: the directories of all units, in order.

    Raises ValueError when not all ranges of BANDS are merged.
    """
    path = merged / DECISION_FILE
    if path.exists():
        return path
    from data_prep.band_groups import alike_in, stretches_of  # compiled and slow to import, for one process only

    least = int(np.count_nonzero(np.arange(config.permutations + 1) / config.permutations < config.threshold))
    alike = np.empty((0, 2), dtype=np.uint64)
    found: list[np.ndarray] = []
    for groups in merged_ranges(merged, BANDS):
        for documents, borders in stretches_of(groups["begins"]):
            of_unit, numbers = groups["unit"][documents], groups["number"][documents]
            pairs = alike_in(_signatures(units, of_unit, numbers, config.permutations), borders, least)
            found.append(_place(of_unit, numbers)[pairs])
            if sum(map(len, found)) > max(len(alike), 2**20):  # the same pair may come from every band
                alike, found = _distinct(np.concatenate([alike, *found])), []
    with written_durably(path) as file:
        np.save(file, _all_but_firsts(_distinct(np.concatenate([alike, *found]))))
    return path


def near_duplicates_in(unit: int, path: Path) -> np.ndarray:
    """The numbers of a unit's documents that are not the first of their cluster, rising; `path` is the file of
    `write_near_duplicates`."""
    places = np.load(path, mmap_mode="r")
    start, end = np.searchsorted(places, [_place(np.uint64(which), np.uint64(0)) for which in (unit, unit + 1)])
    return np.array(places[start:end]) & np.uint64(2**_NUMBER_BITS - 1)


def _place(unit: Any, number: Any) -> Any:
    """Where a document is in input order, as one number."""
    return (unit.astype(np.uint64) << np.uint64(_NUMBER_BITS)) | number


def _signatures(units: Sequence[Path], of_unit: np.ndarray, numbers: np.ndarray, permutations: int) -> np.ndarray:
    """[number of documents, permutations] uint32, from the files of their units."""
    rows = np.empty((len(numbers), permutations), dtype=np.uint32)
    for unit in np.unique(of_unit):
        of_file = np.memmap(units[unit] / _SIGNATURES_FILE, dtype="<u4", mode="r").reshape(-1, permutations)
        rows[of_unit == unit] = of_file[numbers[of_unit == unit]]
    return rows


def _distinct(pairs: np.ndarray) -> np.ndarray:
    pairs = pairs[np.lexsort(pairs.T)]
    is_new = np.ones(len(pairs), dtype=bool)
    is_new[1:] = (pairs[1:] != pairs[:-1]).any(axis=1)
    return pairs[is_new]


def _all_but_firsts(alike: np.ndarray) -> np.ndarray:
    """Of pairs [number of pairs, 2] of places, those of every cluster but its first, rising."""
    from scipy.sparse import coo_array  # which datasketch needs and so brings
    from scipy.sparse.csgraph import connected_components

    places, nodes = np.unique(alike, return_inverse=True)
    nodes = nodes.reshape(-1, 2)
    edges = coo_array((np.ones(len(nodes), dtype=bool), (nodes[:, 0], nodes[:, 1])), shape=(len(places),) * 2)
    _, clusters = connected_components(edges, directed=False)
    is_first = np.zeros(len(places), dtype=bool)
    is_first[np.unique(clusters, return_index=True)[1]] = True
    return places[~is_first]


def _mixed(values: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64: every bit of a number comes to bear on every bit of the result."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
