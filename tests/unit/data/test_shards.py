"""A split reads as one stream of tokens, and files that are not what was written are named."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deberta_scale.data.shards import ShardError, ShardSet, ShardWriter, sha256_of, write_manifest

VOCABULARY = 1000
UNKNOWN = 3
DESCRIPTION = {
    "sha256": "00" * 32,
    "vocabulary_size": VOCABULARY,
    "pad_id": 0,
    "cls_id": 1,
    "sep_id": 2,
    "unk_id": UNKNOWN,
    "mask_id": VOCABULARY - 1,
    "sentencepiece_version": "0",
}
SHARDS = [
    [[[10, 11, 12], [13]], [[14, 15]]],
    [[[16]]],
    [[[17, UNKNOWN, 19], [20, 21]], [[22]], [[23, 24, 25, 26]]],
]
"""Documents of paragraphs of tokens, by shard."""
STREAM = [token for shard in SHARDS for document in shard for paragraph in document for token in paragraph]


def write_split(directory: Path, shards: list[list[list[list[int]]]]) -> dict[str, Any]:
    directory.mkdir()
    entries, counts = [], np.zeros(VOCABULARY, dtype=np.int64)
    for number, documents in enumerate(shards):
        writer = ShardWriter(directory / f"{number:05d}", VOCABULARY, UNKNOWN)
        for document in documents:
            writer.add([np.array(paragraph, dtype=np.int32) for paragraph in document])
        entries.append({"name": f"{number:05d}", **writer.finish()})
        counts += writer.token_counts
    return write_manifest(directory, DESCRIPTION, entries, counts)


@pytest.fixture
def split_dir(tmp_path: Path) -> Path:
    write_split(tmp_path / "train", SHARDS)
    return tmp_path / "train"


def message_on_opening(split_dir: Path) -> str:
    with pytest.raises(ShardError) as caught:
        ShardSet(split_dir)
    return str(caught.value)


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change_manifest(split_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = split_dir / "manifest.json"
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest))


def test_counts_are_those_of_what_was_written(split_dir: Path) -> None:
    shards = ShardSet(split_dir)
    assert (shards.num_shards, shards.num_documents, shards.num_sequences) == (3, 6, 8)
    assert (shards.num_tokens, shards.unknown_tokens) == (len(STREAM), 1)
    assert shards.vocabulary_size == VOCABULARY


def test_sequences_and_documents_are_numbered_through_all_shards(split_dir: Path) -> None:
    shards = ShardSet(split_dir)
    assert shards.sequence_lengths.tolist() == [3, 1, 2, 1, 3, 2, 1, 4]
    assert shards.document_index.tolist() == [0, 2, 3, 4, 6, 7, 8]


def test_a_shard_of_many_writes_holds_every_document_and_counts_every_token(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(VOCABULARY, size=600_000, dtype=np.int32)
    documents = np.array_split(tokens, 40)
    writer = ShardWriter(tmp_path / "00000", VOCABULARY, UNKNOWN)
    for document in documents:
        writer.add(np.array_split(document, 3))
    entry = writer.finish()
    assert (tmp_path / "00000.bin").read_bytes() == tokens.tobytes()
    assert (entry["tokens"], entry["documents"], entry["sequences"]) == (len(tokens), 40, 120)
    assert writer.token_counts.tolist() == np.bincount(tokens, minlength=VOCABULARY).tolist()


def test_every_stretch_reads_the_same_across_shard_borders(split_dir: Path) -> None:
    shards = ShardSet(split_dir)
    for start in range(len(STREAM)):
        for end in range(start + 1, len(STREAM) + 1):
            assert shards.read(start, end - start).tolist() == STREAM[start:end]


def test_reading_beyond_the_end_is_an_error(split_dir: Path) -> None:
    with pytest.raises(IndexError):
        ShardSet(split_dir).read(len(STREAM) - 2, 3)


def test_reading_within_a_shard_copies_nothing_and_cannot_change_it(split_dir: Path) -> None:
    part = ShardSet(split_dir).read(0, 4)
    assert part.base is not None and not part.flags.writeable


def test_entropy_is_that_of_the_tokens(tmp_path: Path) -> None:
    manifest = write_split(tmp_path / "train", [[[[10, 11, 10, 11]]], [[[12, 13, 12, 13]]]])
    assert manifest["unigram_entropy_nats"] == pytest.approx(np.log(4))


def test_the_fingerprint_tells_data_sets_apart_and_not_where_they_lie(tmp_path: Path) -> None:
    fingerprints = [
        write_split(tmp_path / name, shards)["fingerprint"]
        for name, shards in [("one", SHARDS), ("copy", SHARDS), ("swapped", [SHARDS[1], SHARDS[0], SHARDS[2]])]
    ]
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]


def test_sound_shards_verify(split_dir: Path) -> None:
    shards = ShardSet(split_dir)
    assert [shards.verify_shard(number) for number in range(3)] == ["00000", "00001", "00002"]


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_truncated_file_is_named_on_opening(split_dir: Path, ending: str) -> None:
    """R7."""
    path = split_dir / f"00001{ending}"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    assert f"{path}: {size - 1} bytes, manifest.json says {size}" in message_on_opening(split_dir)


@pytest.mark.parametrize("ending", [".bin", ".idx"])
def test_a_missing_file_is_named_on_opening(split_dir: Path, ending: str) -> None:
    """R7."""
    path = split_dir / f"00002{ending}"
    path.unlink()
    assert f"{path}: cannot be read (No such file or directory)" in message_on_opening(split_dir)


def test_a_flipped_bit_of_the_tokens_is_named_by_verify(split_dir: Path) -> None:
    """R7."""
    path = split_dir / "00001.bin"
    flip_last_bit(path)
    shards = ShardSet(split_dir)
    assert shards.verify_shard(0) == "00000"
    with pytest.raises(ShardError) as caught:
        shards.verify_shard(1)
    assert str(caught.value).startswith(f"{path}: its sha256 is not the one in manifest.json")


@pytest.mark.parametrize("place", [0, 9, 17, 18, 26, 34, -1])
def test_a_changed_index_is_named_on_opening(split_dir: Path, place: int) -> None:
    path = split_dir / "00002.idx"
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    assert message_on_opening(split_dir).startswith(f"{path}: not the index that manifest.json describes")


def test_a_changed_offset_which_nothing_here_reads_is_named_by_verify(split_dir: Path) -> None:
    path = split_dir / "00002.idx"
    content = bytearray(path.read_bytes())
    content[34 + 4 * 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(ShardError, match=r"00002\.idx: its sha256"):
        ShardSet(split_dir).verify_shard(2)


def test_shards_that_changed_places_are_named(split_dir: Path) -> None:
    (split_dir / "00000.bin").rename(split_dir / "old.bin")
    (split_dir / "00001.bin").rename(split_dir / "00000.bin")
    assert f"{split_dir / '00000.bin'}: 4 bytes, manifest.json says 24" in message_on_opening(split_dir)


def test_a_directory_without_a_manifest_says_what_makes_one(tmp_path: Path) -> None:
    message = message_on_opening(tmp_path)
    assert f"{tmp_path / 'manifest.json'}: cannot be read" in message
    assert "data_prep/tokenize_corpus.py wrote" in message


@pytest.mark.parametrize("content", ["{", "\udcff", ""])
def test_a_manifest_that_is_not_json_is_named(split_dir: Path, content: str) -> None:
    (split_dir / "manifest.json").write_bytes(content.encode(errors="surrogateescape"))
    assert f"{split_dir / 'manifest.json'}: not valid JSON" in message_on_opening(split_dir)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda m: m.update(format_version=2), "not a manifest of format version 1"),
        (lambda m: m["shards"].pop(), "its fingerprint and totals are not those of its shards"),
        (lambda m: m["shards"].reverse(), "its fingerprint and totals are not those of its shards"),
        (lambda m: m.update(tokens=3), "its fingerprint and totals are not those of its shards"),
        (lambda m: m["shards"][0].update(name="00001"), "its fingerprint and totals are not those of its shards"),
        (lambda m: m["shards"][0].pop("bin_sha256"), "damaged (KeyError('bin_sha256'))"),
        (lambda m: m["shards"][0].update(bin_sha256="x"), "damaged (ValueError("),
        (lambda m: m.update(shards=3), "damaged (TypeError("),
        (lambda m: m.pop("tokenizer_sha256"), "damaged, it has no tokenizer_sha256"),
        (lambda m: m.pop("unigram_entropy_nats"), "damaged, it has no unigram_entropy_nats"),
    ],
)
def test_a_changed_manifest_is_named(
    split_dir: Path, change: Callable[[dict[str, Any]], object], expected: str
) -> None:
    change_manifest(split_dir, change)
    message = message_on_opening(split_dir)
    assert message.startswith(f"{split_dir / 'manifest.json'}: ") and expected in message


def test_a_file_that_cannot_be_digested_is_named(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"none\.bin: cannot be read"):
        sha256_of(tmp_path / "none.bin")
