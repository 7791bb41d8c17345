"""Stock `transformers` cuts texts into the ids of training, from the files of every kind of tokenizer."""

import json
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import sentencepiece
import torch

from deberta_scale.convert.source import ConversionError
from deberta_scale.convert.tokenizer_files import fast_tokenizer, official_vocabulary, tokenizer_files
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.data.tokenizer_byte_pair import BytePairs
from tests.launching import ROOT
from tests.vocabularies import FORMS, Vocabulary, train_byte_pairs, train_pieces, write_vocabulary_and_merges

transformers = pytest.importorskip("transformers", reason="the peer to compare with; pip install '.[peers]'")

ADDED = ("<drug>", "<drug>-like", "COVID-19", "New York")
KINDS = ("sentencepiece", "without byte pieces", "byte pairs")
TEXTS = [
    "She was very kind to see him.",
    "Two  spaces,\ttabs\nand\u00a0other\u3000space",
    "",
    "naïve café, Ångström, Škoda, crème brûlée, tiếng Việt",
    unicodedata.normalize("NFD", "naïve café, Ångström, Škoda, crème brûlée, tiếng Việt, 한국어, ガギグ"),
    "emoji 😀 and a family 👩‍👩‍👧, a flag 🇫🇷, a skin 👍🏽",
    "日本語の文章。「５０％」 中文、한국어 ｶﾞｷﾞ ～ ﬁne ½ ① … “quoted” — dash",
    "हिन्दी क्षि, العربية, می\u200cخواهم, ไทย",
    "bytes <0x41> and <0x0A>, controls \x01\x7f\ufeff\u200b, ▁literal▁",
]
WITH_TOKENS = [
    "She was very [MASK] to see him.",
    "[MASK], said he;[MASK] is un[MASK]able!  [MASK]",
    "[MASK]魑魅 [MASK] 魑魅",
    "<drug> and <drug>-like,<drug>s of COVID-19 in New York [MASK]<drug>",
]


@pytest.fixture(scope="module")
def vocabulary(sample_documents: list[str]) -> Vocabulary:
    return train_byte_pairs(sample_documents[:10], 700)


@pytest.fixture(scope="module")
def tokenizers(
    prepared_shards: Path, vocabulary: Vocabulary, sample_documents: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Tokenizer]:
    parent = tmp_path_factory.mktemp("tokenizers")
    (parent / "without").mkdir()
    model = train_pieces(sample_documents[0].split("\n"), 500, byte_fallback=False)
    (parent / "without" / "spm.model").write_bytes(model)
    write_vocabulary_and_merges(vocabulary, parent / "byte pairs")
    directories = (prepared_shards / "tokenizer", parent / "without", parent / "byte pairs")
    return {kind: Tokenizer.load(directory) for kind, directory in zip(KINDS, directories, strict=True)}


def written(tokenizer: Tokenizer, directory: Path) -> Path:
    for name, content in tokenizer_files(tokenizer, 512).items():
        (directory / name).write_bytes(content)
    return directory


@pytest.mark.parametrize("added", [(), ADDED], ids=["plain", "added"])
@pytest.mark.parametrize("kind", KINDS)
def test_stock_tokenizers_give_the_ids_of_training(
    tokenizers: dict[str, Tokenizer], sample_documents: list[str], tmp_path: Path, kind: str, added: tuple[str, ...]
) -> None:
    ours = Tokenizer(tokenizers[kind].model, added_tokens=added)
    stock = transformers.AutoTokenizer.from_pretrained(written(ours, tmp_path))
    assert len(stock) == ours.vocabulary_size and stock.mask_token_id == ours.mask_id
    assert (stock.pad_token_id, stock.cls_token_id, stock.sep_token_id, stock.unk_token_id) == (0, 1, 2, 3)
    assert [stock.convert_tokens_to_ids(token) for token in added] == [ours.id_of_token[token] for token in added]

    paragraphs = [paragraph for document in sample_documents[:20] for paragraph in document.split("\n") if paragraph]
    texts = TEXTS + paragraphs + WITH_TOKENS[3:]
    for text, ids in zip(texts[:-1], ours.encode(texts[:-1]), strict=True):
        assert stock(text).input_ids == [ours.cls_id, *ids.tolist(), ours.sep_id], text[:80]
    for text in WITH_TOKENS:
        assert stock(text).input_ids == [ours.cls_id, *ours.encode_masked(text), ours.sep_id], text


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_written_loads_as_the_same_tokenizer(
    tokenizers: dict[str, Tokenizer], tmp_path: Path, kind: str
) -> None:
    ours = Tokenizer(tokenizers[kind].model, added_tokens=ADDED)
    assert Tokenizer.load(written(ours, tmp_path)).describe() == ours.describe()


def test_pairs_and_decoding(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    for kind in ("sentencepiece", "byte pairs"):
        (tmp_path / kind).mkdir()
        ours = Tokenizer(tokenizers[kind].model, added_tokens=ADDED)
        stock = transformers.AutoTokenizer.from_pretrained(written(ours, tmp_path / kind))
        assert stock.decode(stock("naïve 😀 text").input_ids, skip_special_tokens=True) == "naïve 😀 text"
        [first, second] = ours.encode(["one", "two"])
        assert stock("one", "two").input_ids == [1, *first, 2, *second, 2]


def test_stock_v1_tokenizer_gives_our_ids_from_the_files_of_a_release(
    tokenizers: dict[str, Tokenizer], vocabulary: Vocabulary, sample_documents: list[str], tmp_path: Path
) -> None:
    """The class that `microsoft/deberta-base` loads with, on its vocab.json and merges.txt, and on what we write."""
    ours = tokenizers["byte pairs"]
    (tmp_path / "ours").mkdir()
    release = write_vocabulary_and_merges(vocabulary, tmp_path / "release")
    for directory in (release, written(ours, tmp_path / "ours")):
        stock = transformers.DebertaTokenizer.from_pretrained(directory)
        assert len(stock) == ours.vocabulary_size and stock.mask_token_id == ours.mask_id
        texts = TEXTS + [paragraph for document in sample_documents[:20] for paragraph in document.split("\n")]
        for text, ids in zip(texts, ours.encode(texts), strict=True):
            assert stock(text).input_ids == [1, *ids.tolist(), 2], text[:80]
        for text in WITH_TOKENS[:3]:
            # from the release stock leaves the space before a mask as a piece, which no text of training has
            written_for_stock = text if directory != release else text.replace(" [MASK]", "[MASK]").replace(" [", "[")
            assert stock(written_for_stock).input_ids == [1, *ours.encode_masked(text), 2], text


def official_ids(path: Path, text: str, tokenizer: Tokenizer) -> list[int]:
    """As the official GPT2Tokenizer numbers pieces: GPT-2's number as text, looked up in the order of `dict_map`."""
    content = torch.load(path, weights_only=True)
    indices: dict[str, int] = {}
    for word in ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *(word for word, _ in content["dict_map"]), "[MASK]"]:
        indices.setdefault(word, len(indices))
    assert indices["[MASK]"] == tokenizer.mask_id
    pieces = [tokenizer.piece(token) for token in tokenizer.encode([text])[0]]
    return [indices[str(content["encoder"][piece])] for piece in pieces]


def test_the_official_vocabulary_file_gives_our_ids(tokenizers: dict[str, Tokenizer], tmp_path: Path) -> None:
    ours = tokenizers["byte pairs"]
    assert isinstance(ours.model, BytePairs)
    (tmp_path / "bpe_encoder.bin").write_bytes(official_vocabulary(ours.model))
    for text in TEXTS:
        assert official_ids(tmp_path / "bpe_encoder.bin", text, ours) == ours.encode([text])[0].tolist()
    assert Tokenizer.load(tmp_path).describe() == ours.describe()


def test_both_ways_of_writing_the_official_file_mean_the_same(
    tokenizers: dict[str, Tokenizer], vocabulary: Vocabulary, tmp_path: Path
) -> None:
    directory = FORMS["bpe_encoder.bin"](vocabulary, tmp_path)
    ours = tokenizers["byte pairs"]
    for text in TEXTS:
        assert official_ids(directory / "bpe_encoder.bin", text, ours) == ours.encode([text])[0].tolist()


def test_a_package_that_is_missing_is_named(tokenizers: dict[str, Tokenizer], monkeypatch: pytest.MonkeyPatch) -> None:
    for package, kind in (("google.protobuf", "sentencepiece"), ("tokenizers", "byte pairs")):
        with monkeypatch.context() as without:
            for name in [name for name in sys.modules if name.startswith("sentencepiece.sentencepiece_model")]:
                without.delitem(sys.modules, name)
            without.delattr(sentencepiece, "sentencepiece_model_pb2", raising=False)
            without.setitem(sys.modules, package, None)
            expected = rf"needs {'protobuf' if 'google' in package else package}, .* 'deberta-scale\[peers\]'"
            with pytest.raises(ConversionError, match=expected):
                fast_tokenizer(tokenizers[kind])


def compare(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "launch" / "compare_tokenizers.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)


def test_the_comparison_counts_and_explains(prepared_shards: Path, sample_documents: list[str], tmp_path: Path) -> None:
    marks = "a\u0301\u0323 b"  # the lower mark comes first in canonical order
    paragraphs = sample_documents[0].split("\n")[:5]
    texts = [*paragraphs, f"the marks {marks}", "spelled [CLS] out", "aaaaa"]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    directory = prepared_shards / "tokenizer"
    answer = json.loads(compare(directory, "--input", tmp_path / "text.jsonl", "--json").stdout)
    for found in (answer["documents"], answer["paragraphs"]):
        assert found["classes"] == {"combining marks": 1, "special piece": 1}
        assert found["differ"] == 2 and found["differing_tokens"] < 20 < found["tokens"]
    assert answer["documents"]["texts"] == len(texts)
    done = compare(directory, "--input", tmp_path / "text.jsonl", "--documents", "5")
    assert "documents: 0 of 5 differ (0.0000%)" in done.stdout and done.returncode == 0


def test_the_comparison_reads_an_exported_directory(
    tokenizers: dict[str, Tokenizer], sample_documents: list[str], tmp_path: Path
) -> None:
    directory = written(tokenizers["byte pairs"], tmp_path)
    shutil.copy(directory / "tokenizer.json", tmp_path / "copy.json")
    (tmp_path / "text.txt").write_text("\n\n".join(sample_documents[:3]))
    done = compare(directory, "--input", tmp_path / "text.txt")
    assert f"with {directory / 'tokenizer.json'} on " in done.stdout
    assert ": none" in done.stdout and done.returncode == 0
