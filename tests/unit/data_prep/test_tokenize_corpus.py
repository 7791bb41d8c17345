"""Shards hold each document's text once, whatever the workers, or nothing is written at all."""

import hashlib
import json
import math
import struct
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from data_prep.inputs import InputError, Reading, find_inputs
from data_prep.tokenize_corpus import SPLITS, tokenize
from deberta_scale.data.shards import ShardSet
from deberta_scale.data.tokenizer import Tokenizer
from tests.launching import ROOT
from tests.reading_shards import digests_of, texts_of


@pytest.fixture(scope="session")
def tokenizer_dir(prepared_shards: Path) -> Path:
    return prepared_shards / "tokenizer"


def write_texts(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def tokenize_into(out: Path, tokenizer_dir: Path, *inputs: Path, **options: Any) -> dict[str, Any]:
    return tokenize(find_inputs(list(inputs)), Reading(), tokenizer_dir, out, **options)


@pytest.fixture
def numbered(tmp_path: Path) -> Path:
    """Two hundred documents of two paragraphs, all different."""
    return write_texts(tmp_path / "numbered.jsonl", [f"document {n}\nand its number is {n}" for n in range(200)])


def read_megatron_shard(prefix: Path) -> list[list[list[int]]]:
    """Documents of sequences of ids, read as the description of Megatron's layout says, with nothing of ours."""
    index = prefix.with_suffix(".idx").read_bytes()
    payload = prefix.with_suffix(".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, num_sequences, num_bounds = struct.unpack("<QBQQ", index[9:34])
    assert (version, code) == (1, 4), "code 4 is int32"
    lengths = struct.unpack(f"<{num_sequences}i", index[34 : 34 + 4 * num_sequences])
    offsets = struct.unpack(f"<{num_sequences}q", index[34 + 4 * num_sequences : 34 + 12 * num_sequences])
    bounds = struct.unpack(f"<{num_bounds}q", index[34 + 12 * num_sequences :])
    assert bounds[0] == 0 and bounds[-1] == num_sequences
    sequences = [
        list(struct.unpack_from(f"<{length}i", payload, offset))
        for length, offset in zip(lengths, offsets, strict=True)
    ]
    assert sum(lengths) * 4 == len(payload)
    return [sequences[first:end] for first, end in pairwise(bounds)]


def test_the_number_of_workers_changes_no_byte(
    tokenizer_dir: Path, tmp_path: Path, sample_documents: list[str], numbered: Path
) -> None:
    text = write_texts(tmp_path / "text.jsonl", sample_documents)
    for workers in (1, 2):
        options: dict[str, Any] = {"workers": workers, "shard_tokens": 20_000, "validation_fraction": 0.2}
        tokenize_into(tmp_path / f"out{workers}", tokenizer_dir, text, numbered, **options)
    assert ShardSet(tmp_path / "out1" / "train").num_shards > 5, "several units of work"
    assert digests_of(tmp_path / "out1") == digests_of(tmp_path / "out2")


def test_documents_and_paragraphs_come_back_as_they_were(tokenizer_dir: Path, tmp_path: Path) -> None:
    texts = ["Emma was kind.\nShe smiled 😀.", "A single line", *(f"filler {n}" for n in range(60))]
    out = tmp_path / "out"
    tokenize_into(out, tokenizer_dir, write_texts(tmp_path / "a.jsonl", texts), validation_fraction=0.3)
    found = [document for split in SPLITS for document in texts_of(out, split)]
    assert sorted(found) == sorted(text.split("\n") for text in texts)


def test_documents_of_a_split_keep_the_order_of_the_input(tokenizer_dir: Path, tmp_path: Path, numbered: Path) -> None:
    out = tmp_path / "out"
    tokenize_into(out, tokenizer_dir, numbered, shard_tokens=200, validation_fraction=0.2)
    for split in SPLITS:
        numbers = [int(first.split()[1]) for first, _ in texts_of(out, split)]
        assert len(numbers) > 20 and numbers == sorted(numbers)


def test_adding_documents_moves_none_between_splits(tokenizer_dir: Path, tmp_path: Path, numbered: Path) -> None:
    more = write_texts(tmp_path / "a_first_file.jsonl", [f"an added text, {n}" for n in range(100)])
    tokenize_into(tmp_path / "few", tokenizer_dir, numbered)
    tokenize_into(tmp_path / "many", tokenizer_dir, more, numbered)
    for split in SPLITS:
        old, new = texts_of(tmp_path / "few", split), texts_of(tmp_path / "many", split)
        assert [document for document in new if "added" not in document[0]] == old


def test_about_the_asked_for_share_is_held_out(tokenizer_dir: Path, tmp_path: Path, numbered: Path) -> None:
    result = tokenize_into(tmp_path / "out", tokenizer_dir, numbered, validation_fraction=0.25)
    assert 30 < result["validation"]["documents"] < 70


def test_a_line_of_300_000_characters_is_one_sequence(tokenizer_dir: Path, tmp_path: Path) -> None:
    long = "It is a truth universally acknowledged. " * 7500
    texts = [long.strip(), *(f"filler {n}" for n in range(100))]
    tokenize_into(tmp_path / "out", tokenizer_dir, write_texts(tmp_path / "a.jsonl", texts), shard_tokens=1000)
    found = [document for split in SPLITS for document in texts_of(tmp_path / "out", split)]
    assert [long.strip()] in found


def test_documents_without_text_are_left_out_and_counted(tokenizer_dir: Path, tmp_path: Path, numbered: Path) -> None:
    empty = write_texts(tmp_path / "empty.jsonl", ["", " \n ", "\u200b"])
    result = tokenize_into(tmp_path / "out", tokenizer_dir, numbered, empty)
    assert result["empty_documents"] == 3
    assert sum(result[split]["documents"] for split in SPLITS) == 200


def test_an_independent_reader_of_megatrons_layout_finds_the_same(
    tokenizer_dir: Path, tmp_path: Path, numbered: Path
) -> None:
    out = tmp_path / "out"
    tokenize_into(out, tokenizer_dir, numbered, shard_tokens=500, validation_fraction=0.2)
    tokenizer = Tokenizer.load(tokenizer_dir)
    for split in SPLITS:
        prefixes = sorted(path.with_suffix("") for path in (out / split).glob("*.bin"))
        assert len(prefixes) > 1
        found = [document for prefix in prefixes for document in read_megatron_shard(prefix)]
        decoded = [[tokenizer.decode(sequence) for sequence in document] for document in found]
        assert decoded == texts_of(out, split)
        assert tokenizer.mask_id not in {token for document in found for sequence in document for token in sequence}


def test_the_manifest_counts_what_the_files_hold(tokenizer_dir: Path, tmp_path: Path, numbered: Path) -> None:
    out = tmp_path / "out"
    tokenize_into(out, tokenizer_dir, numbered, shard_tokens=500, validation_fraction=0.2)
    manifest = json.loads((out / "train" / "manifest.json").read_text())
    documents = [d for shard in manifest["shards"] for d in read_megatron_shard(out / "train" / shard["name"])]
    counts = Counter(token for document in documents for sequence in document for token in sequence)
    total = counts.total()
    assert (manifest["tokens"], manifest["documents"]) == (total, len(documents))
    assert manifest["sequences"] == sum(map(len, documents))
    entropy = -sum(n / total * math.log(n / total) for n in counts.values())
    assert manifest["unigram_entropy_nats"] == pytest.approx(entropy, rel=1e-12)
    for shard in manifest["shards"]:
        for ending in ("bin", "idx"):
            content = (out / "train" / f"{shard['name']}.{ending}").read_bytes()
            assert shard[f"{ending}_sha256"] == hashlib.sha256(content).hexdigest()


def test_the_tokenizer_lies_beside_the_splits_without_what_else_stood_with_it(
    prepared_shards: Path, tmp_path: Path, numbered: Path
) -> None:
    directory = tmp_path / "tokenizer"
    directory.mkdir()
    for name in ("spm.model", "metadata.json"):
        (directory / name).write_bytes((prepared_shards / "tokenizer" / name).read_bytes())
    (directory / "notes").write_text("not for the shards")
    tokenize_into(directory / "shards", directory, numbered)  # inside what is copied
    copied = {path.name for path in (directory / "shards" / "tokenizer").iterdir()}
    assert copied == {"spm.model", "metadata.json"}


def test_a_directory_in_use_is_refused_and_left_as_it_is(tokenizer_dir: Path, tmp_path: Path, numbered: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes").write_text("keep me")
    with pytest.raises(ValueError, match="exists and is not empty; give another directory"):
        tokenize_into(out, tokenizer_dir, numbered)
    assert [path.name for path in out.iterdir()] == ["notes"]


def test_an_empty_directory_is_used(tokenizer_dir: Path, tmp_path: Path, numbered: Path) -> None:
    (tmp_path / "out").mkdir()
    tokenize_into(tmp_path / "out", tokenizer_dir, numbered)
    assert ShardSet(tmp_path / "out" / "train").num_documents > 100


def test_what_was_half_removed_by_a_killed_run_is_not_used(tokenizer_dir: Path, tmp_path: Path, numbered: Path) -> None:
    (tmp_path / "out.partial.removed" / "units" / "000000").mkdir(parents=True)
    tokenize_into(tmp_path / "out", tokenizer_dir, numbered)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["numbered.jsonl", "out"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broken_line_in_the_middle_leaves_nothing_behind(tokenizer_dir: Path, tmp_path: Path, workers: int) -> None:
    lines = [json.dumps({"text": f"document {n}"}) for n in range(300)]
    lines[150] = '{"text": "cut'
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"a\.jsonl, line 151: not valid JSON"):
        tokenize_into(tmp_path / "out", tokenizer_dir, path, workers=workers, shard_tokens=500)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("share", "expected"), [(1e-9, "validation split; give a larger"), (1 - 1e-9, "train split")])
def test_a_split_without_a_document_is_an_error(
    tokenizer_dir: Path, tmp_path: Path, numbered: Path, share: float, expected: str
) -> None:
    with pytest.raises(InputError, match=rf"numbered\.jsonl: no document fell into the {expected}"):
        tokenize_into(tmp_path / "out", tokenizer_dir, numbered, validation_fraction=share)
    assert list(tmp_path.iterdir()) == [numbered]


@pytest.mark.parametrize("content", ["", "\n\n", "\u200b\n"])
def test_input_without_text_is_an_error_that_names_it(tokenizer_dir: Path, tmp_path: Path, content: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(content)
    with pytest.raises(InputError, match=r"empty\.txt: no text in it, nothing to tokenize"):
        tokenize_into(tmp_path / "out", tokenizer_dir, path)


def test_a_data_description_makes_a_directory_of_each_source_with_its_filters(
    prepared_shards: Path, sample_documents: list[str], tmp_path: Path
) -> None:
    for name, documents in (
        ("novels", sample_documents),
        ("notes", [*sample_documents[:20], "short", "ab\x00c\x07d " * 9]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
    description = tmp_path / "data.yaml"
    description.write_text(
        f"tokenizer: {prepared_shards / 'tokenizer'}\nvalidation_fraction: 0.2\nsources:\n"
        f"  novels: {{paths: [{tmp_path / 'novels.jsonl'}]}}\n"
        f"  notes: {{paths: [{tmp_path / 'notes.jsonl'}], cleaning: {{min_document_characters: 10}}}}\n"
    )
    command = [sys.executable, ROOT / "data_prep" / "tokenize_corpus.py", "--data", description, "--out"]
    result = subprocess.run([*map(str, command), str(tmp_path / "out")], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stderr
    assert "left out by document_length: 1 documents, 1 paragraphs, 5 characters" in result.stdout
    told = json.loads((tmp_path / "out" / "notes" / "preparation.json").read_text())
    assert told["cleaning"]["all"]["documents_in"] == 22 and told["cleaning"]["all"]["documents_out"] == 21
    assert told["cleaning"]["control_characters"]["documents_changed"] == 1
    assert ShardSet(tmp_path / "out" / "novels" / "train").num_documents > 30
