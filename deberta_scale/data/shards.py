"""The bytes of a data set: shards in the Megatron memory-mapped layout, and the manifest that describes a split.

`NNNNN.bin` holds the tokens, int32, back to back, no special ones. `NNNNN.idx` (little endian, no padding): magic
`MMIDIDX\\0\\0`, u64 version 1, u8 type code 4 (int32), u64 sequences S, u64 documents + 1, then i32[S] lengths in
tokens, i64[S] byte offsets in the .bin, i64[documents + 1] first sequence of each document. A sequence is a paragraph.
`manifest.json` names tokenizer, counts and digests; it is written last.
"""

import hashlib
import json
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np

from deberta_scale.durable import write_durably

FORMAT_VERSION = 1
MANIFEST_FILE = "manifest.json"
_HEADER = struct.Struct("<9sQBQQ")
_MAGIC, _INDEX_VERSION, _INT32_CODE = b"MMIDIDX\x00\x00", 1, 4
_DTYPE = np.dtype("<i4")
_TOKENS_AT_ONCE = 2**18
"""Written and counted together: a count adds to the whole vocabulary, which for every document would take longer than
cutting the text."""
_TOKENIZER_KEYS = ("vocabulary_size", "pad_id", "cls_id", "sep_id", "unk_id", "mask_id")
_MANIFEST_KEYS = ("tokenizer_sha256", *_TOKENIZER_KEYS, "unknown_tokens", "unigram_entropy_nats")


class ShardError(ValueError):
    """Shards that cannot be used. The message names the file and what to do."""


class ShardWriter:
    """Writes one shard, `PREFIX.bin` and `PREFIX.idx`. Publishing the directory around them is the caller's part."""

    def __init__(self, prefix: Path, vocabulary_size: int, unk_id: int) -> None:
        self.prefix = prefix
        self.num_tokens = 0
        self.token_counts = np.zeros(vocabulary_size, dtype=np.int64)
        """How often each id was written; complete when the shard is finished."""
        self._unk_id = unk_id
        self._waiting: list[np.ndarray] = []
        self._num_waiting_tokens = 0
        self._sequence_lengths: list[int] = []
        self._document_ends = [0]
        self._stream = prefix.with_suffix(".bin").open("wb")

    def add(self, sequences: list[np.ndarray]) -> None:
        """Add a document: the ids of its paragraphs, none of them empty. The arrays are kept for a while, so they must
        not change."""
        lengths = [len(sequence) for sequence in sequences]
        self._sequence_lengths += lengths
        self._document_ends.append(len(self._sequence_lengths))
        self.num_tokens += sum(lengths)
        self._waiting += sequences
        self._num_waiting_tokens += sum(lengths)
        if self._num_waiting_tokens >= _TOKENS_AT_ONCE:
            self._write_waiting()

    def finish(self) -> dict[str, Any]:
        """Write the index. Returns the shard's entry for the manifest, without name and source."""
        self._write_waiting()
        lengths = np.array(self._sequence_lengths, dtype="<i4")
        offsets = (np.cumsum(lengths, dtype="<i8") - lengths) * _DTYPE.itemsize
        header = _HEADER.pack(_MAGIC, _INDEX_VERSION, _INT32_CODE, len(lengths), len(self._document_ends))
        index_path = self.prefix.with_suffix(".idx")
        self._stream.close()
        document_ends = np.array(self._document_ends, dtype="<i8")
        index_path.write_bytes(header + lengths.tobytes() + offsets.tobytes() + document_ends.tobytes())
        return {
            "tokens": self.num_tokens,
            "documents": len(self._document_ends) - 1,
            "sequences": len(lengths),
            "unknown_tokens": int(self.token_counts[self._unk_id]),
            "bin_sha256": sha256_of(self.prefix.with_suffix(".bin")),
            "idx_sha256": sha256_of(index_path),
        }

    def _write_waiting(self) -> None:
        if self._waiting:
            tokens = np.concatenate(self._waiting).astype(_DTYPE, copy=False)
            self._stream.write(tokens.data)
            self.token_counts += np.bincount(tokens, minlength=len(self.token_counts))
            self._waiting, self._num_waiting_tokens = [], 0


def write_manifest(
    split_dir: Path, tokenizer: dict[str, Any], shards: list[dict[str, Any]], token_counts: np.ndarray
) -> dict[str, Any]:
    """Describe the shards of a split, each entry with its `name`, in `manifest.json`; returns what it holds.

    `tokenizer` is Tokenizer.describe(), `token_counts` how often each id occurs in the split.
    """
    renamed = {"kind": "tokenizer_kind", "sha256": "tokenizer_sha256"}
    manifest = {
        "format_version": FORMAT_VERSION,
        "fingerprint": _fingerprint(shards),
        **{renamed.get(key, key): value for key, value in tokenizer.items()},
        "dtype": "int32",
        **{key: sum(s[key] for s in shards) for key in ("tokens", "documents", "sequences", "unknown_tokens")},
        "unigram_entropy_nats": _entropy_nats(token_counts),
        "shards": shards,
    }
    write_durably(split_dir / MANIFEST_FILE, json.dumps(manifest, indent=2) + "\n")
    return manifest


class ShardSet:
    """The shards of a split as one stream of tokens, memory-mapped. Documents and sequences are numbered through."""

    def __init__(self, split_dir: Path) -> None:
        """Open a split. Raises ShardError when manifest, file sizes and indexes do not agree."""
        self.split_dir = split_dir
        manifest = _read_manifest(split_dir)
        self._entries: list[dict[str, Any]] = manifest["shards"]
        self.fingerprint: str = manifest["fingerprint"]
        self.tokenizer_sha256: str = manifest["tokenizer_sha256"]
        self.sentencepiece_version: str | None = manifest.get("sentencepiece_version")
        """That cut the text; None with byte pairs, of which versions do not matter."""
        self.vocabulary_size: int = manifest["vocabulary_size"]
        self.num_tokens: int = manifest["tokens"]
        self.num_documents: int = manifest["documents"]
        self.num_sequences: int = manifest["sequences"]
        self.unknown_tokens: int = manifest["unknown_tokens"]
        self.unigram_entropy_nats: float = manifest["unigram_entropy_nats"]
        """Entropy of the split's distribution of tokens: the loss of guessing by frequency alone."""
        lengths, firsts = [], [np.zeros(1, dtype=np.int64)]
        self.token_arrays: list[np.ndarray] = []
        """int32, read-only, one a shard: the mapped files."""
        self._maps: list[mmap.mmap] = []
        num_sequences = 0
        for entry in self._entries:
            shard_lengths, document_index = self._read_index(entry)
            lengths.append(shard_lengths)
            firsts.append(document_index[1:] + num_sequences)
            num_sequences += len(shard_lengths)
            self._maps.append(_map(self._path(entry, ".bin")))
            # A plain array: slices of np.memmap cost twice as much.
            self.token_arrays.append(np.frombuffer(self._maps[-1], dtype=_DTYPE))
        self.sequence_lengths = np.concatenate(lengths)
        """[num_sequences] int32, in tokens."""
        self.document_index = np.concatenate(firsts)
        """[num_documents + 1] int64: document d holds the sequences document_index[d] .. document_index[d + 1] - 1."""
        self._shard_starts = np.cumsum([0] + [entry["tokens"] for entry in self._entries])

    @property
    def num_shards(self) -> int:
        return len(self._entries)

    @property
    def num_bytes(self) -> int:
        """Of the tokens."""
        return self.num_tokens * _DTYPE.itemsize

    def expect_random_access(self) -> None:
        """Tell the kernel not to read ahead, which is worth it for sets larger than memory: of rows of 512 tokens in
        random order from a cold file, 5,004 were read a second with this and 1,445 without."""
        for mapped in self._maps:
            mapped.madvise(mmap.MADV_RANDOM)

    def read(self, start: int, num_tokens: int) -> np.ndarray:
        """[num_tokens] int32: tokens from `start` on, counted over all shards. A view where they lie in one shard."""
        shard = int(np.searchsorted(self._shard_starts, start, side="right")) - 1
        parts, end = [], start + num_tokens
        while start < end:
            first = int(self._shard_starts[shard])
            part = self.token_arrays[shard][start - first : end - first]
            parts.append(part)
            start += len(part)
            shard += 1
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def check_tokenizer(self, tokenizer: dict[str, Any], tokenizer_dir: Path) -> None:
        """`tokenizer` is Tokenizer.describe() of `tokenizer_dir`. Raises ShardError when the text was cut with another
        one, or with another version of sentencepiece than is installed."""
        if tokenizer["sha256"] != self.tokenizer_sha256:
            raise ShardError(
                f"{self.split_dir}: made with another tokenizer than {tokenizer_dir}; tokenize the text again with"
                " data_prep/tokenize_corpus.py, or put the right tokenizer back"
            )
        made_by, here = self.sentencepiece_version, tokenizer.get("sentencepiece_version")
        if made_by and made_by != here:
            raise ShardError(
                f"{self.split_dir / MANIFEST_FILE}: tokens cut with sentencepiece {made_by}, installed is {here}, which"
                f" cuts some texts differently; pip install sentencepiece=={made_by}, or tokenize the text again with"
                " data_prep/tokenize_corpus.py"
            )

    def verify_shard(self, number: int) -> str:
        """Digest both files of a shard again; returns its name. Raises ShardError naming the file that changed."""
        entry = self._entries[number]
        for ending in (".bin", ".idx"):
            path = self._path(entry, ending)
            if sha256_of(path) != entry[f"{ending[1:]}_sha256"]:
                raise ShardError(
                    f"{path}: its sha256 is not the one in {MANIFEST_FILE}; the file was damaged or changed, copy it"
                    " again or run data_prep/tokenize_corpus.py again"
                )
        return str(entry["name"])

    def _path(self, entry: dict[str, Any], ending: str) -> Path:
        return self.split_dir / f"{entry['name']}{ending}"

    def _read_index(self, entry: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        num_sequences, num_documents = entry["sequences"], entry["documents"]
        path = self._path(entry, ".idx")
        _check_size(self._path(entry, ".bin"), entry["tokens"] * _DTYPE.itemsize)
        _check_size(path, _HEADER.size + 12 * num_sequences + 8 * (num_documents + 1))
        content = path.read_bytes()
        expected = (_MAGIC, _INDEX_VERSION, _INT32_CODE, num_sequences, num_documents + 1)
        lengths = np.frombuffer(content, "<i4", num_sequences, _HEADER.size)
        document_index = np.frombuffer(content, "<i8", num_documents + 1, _HEADER.size + 12 * num_sequences)
        sound = (
            _HEADER.unpack_from(content) == expected
            and int(lengths.sum(dtype=np.int64)) == entry["tokens"]
            and bool((lengths > 0).all())
            and document_index[0] == 0
            and document_index[-1] == num_sequences
            and bool((np.diff(document_index) > 0).all())
        )
        if not sound:
            raise ShardError(f"{path}: not the index that {MANIFEST_FILE} describes; copy it again")
        return lengths, document_index


def sha256_of(path: Path) -> str:
    """The sha256 of a file, hexadecimal. Raises ShardError when it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror})") from None


def _read_manifest(split_dir: Path) -> dict[str, Any]:
    path = split_dir / MANIFEST_FILE
    try:
        manifest: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be read ({error.strerror}); data.shards must name a directory that"
            " data_prep/tokenize_corpus.py wrote"
        ) from None
    except ValueError as error:
        raise ShardError(f"{path}: not valid JSON ({error})") from None
    if not isinstance(manifest, dict) or manifest.get("format_version") != FORMAT_VERSION:
        raise ShardError(f"{path}: not a manifest of format version {FORMAT_VERSION}")
    try:
        agrees = manifest["fingerprint"] == _fingerprint(manifest["shards"])
        agrees &= all(
            manifest[k] == sum(s[k] for s in manifest["shards"]) for k in ("tokens", "documents", "sequences")
        )
        agrees &= len({s["name"] for s in manifest["shards"]}) == len(manifest["shards"])
        missing = [key for key in _MANIFEST_KEYS if key not in manifest]
    except (KeyError, TypeError, ValueError) as error:
        raise ShardError(f"{path}: damaged ({error!r}); copy it again") from None
    if missing:
        raise ShardError(f"{path}: damaged, it has no {', '.join(missing)}; copy it again")
    if not agrees or not manifest["shards"]:
        raise ShardError(f"{path}: its fingerprint and totals are not those of its shards; the file was changed")
    return manifest


def _fingerprint(shards: list[dict[str, Any]]) -> str:
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(bytes.fromhex(shard["bin_sha256"]) + bytes.fromhex(shard["idx_sha256"]))
    return digest.hexdigest()


def _entropy_nats(token_counts: np.ndarray) -> float:
    shares = token_counts[token_counts > 0] / token_counts.sum()
    return math.fsum((-shares * np.log(shares)).tolist())


def _check_size(path: Path, size_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: cannot be read ({error.strerror}), but {MANIFEST_FILE} names it") from None
    if found != size_bytes:
        raise ShardError(
            f"{path}: {found} bytes, {MANIFEST_FILE} says {size_bytes}; the file is damaged, copy it again"
        )


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as stream:
        return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
