"""A tokenizer for several sources is trained on the share of each, cleaned as its shards are."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from data_prep.inputs import InputError
from data_prep.sources import load_description
from data_prep.text_sample import SourceSample, described_sources, sample
from data_prep.train_tokenizer import train_on
from deberta_scale.data.tokenizer import Tokenizer

VOCABULARY = 272


def numbered(count: int, width: int = 4) -> list[str]:
    return [f"{number:0{width}d}" for number in range(count)]


def sampled(max_bytes: int, **sources: tuple[float, int]) -> dict[str, SourceSample]:
    """Of sources, each (share, number of paragraphs of 4 bytes)."""
    texts = [(name, share, numbered(count)) for name, (share, count) in sources.items()]
    return {each.name: each for each in sample(texts, max_bytes)}


def sizes(found: dict[str, SourceSample]) -> dict[str, int]:
    return {name: each.num_bytes for name, each in found.items()}


def test_a_sample_keeps_order_and_size_and_takes_from_everywhere() -> None:
    paragraphs = sampled(400, only=(1.0, 1000))["only"].paragraphs()
    assert len(paragraphs) == 100 and paragraphs == sorted(paragraphs)
    assert all(any(start <= int(paragraph) < start + 250 for paragraph in paragraphs) for start in range(0, 1000, 250))
    whole = sampled(4000, only=(1.0, 1000))["only"]
    assert whole.paragraphs() == numbered(1000) and whole.is_whole


def test_each_source_gives_its_share_whatever_their_sizes_and_order() -> None:
    for sources in (
        {"a": (0.7, 900), "b": (0.2, 9000), "c": (0.1, 300)},
        {"c": (0.1, 300), "a": (0.7, 900), "b": (0.2, 9000)},
    ):
        assert sizes(sampled(1000, **sources)) == {"a": 700, "b": 200, "c": 100}


@pytest.mark.parametrize(
    "order", [("small", "large", "other"), ("large", "other", "small"), ("other", "small", "large")]
)
def test_what_a_small_source_leaves_goes_to_the_others_by_their_shares(order: tuple[str, ...]) -> None:
    sources = {"small": (0.5, 25), "large": (0.4, 5000), "other": (0.1, 5000)}
    found = sampled(1100, **{name: sources[name] for name in order})
    assert sizes(found) == {"small": 100, "large": 800, "other": 200}
    assert {name for name, each in found.items() if each.is_whole} == {"small"}


def test_all_text_is_taken_when_it_fits() -> None:
    found = sampled(10_000, a=(0.9, 10), b=(0.1, 1000))
    assert sizes(found) == {"a": 40, "b": 4000} and all(each.is_whole for each in found.values())


def test_what_a_source_gives_is_a_fair_sample_though_it_had_to_give_way_to_another() -> None:
    """The later source pushes paragraphs of the first out again: early ones and late ones alike."""
    found = sampled(8000, first=(0.5, 8000), second=(0.5, 8000))["first"].paragraphs()
    late = sum(int(paragraph) >= 4000 for paragraph in found)
    assert len(found) == 1000 and 430 < late < 570


def test_no_more_than_the_sample_is_held_at_any_time() -> None:
    held: list[int] = []

    live: list[str] = []

    class Paragraph(str):
        def __init__(self, _: str) -> None:
            live.append("")

        def __del__(self) -> None:
            live.pop()

    def counted() -> Iterator[str]:
        for text in numbered(2000):
            held.append(len(live))
            yield Paragraph(text)

    found = sample([("a", 0.5, counted()), ("b", 0.5, counted())], 400)
    assert [each.num_bytes for each in found] == [200, 200]
    assert max(held) <= 102


def test_a_source_of_weight_0_is_not_read() -> None:
    def never() -> Iterator[str]:
        raise AssertionError("it is read")
        yield ""

    [first, second] = sample([("a", 1.0, ["text"]), ("b", 0.0, never())], 100)
    assert (first.num_bytes, second.num_bytes) == (4, 0)


@pytest.fixture
def described(tmp_path: Path) -> Path:
    """Three sources of words of their own letters; of the first, half of the documents are left out by cleaning."""
    texts = {
        "x": [f"{'xyz' * 3} {'zyx' * 2}" if number % 2 else "qqq" for number in range(2000)],
        "d": [f"{'def' * 3} {'fed' * 2}" for number in range(2000)],
        "k": ["kkk kkk kkk" for number in range(20)],
    }
    for name, paragraphs in texts.items():
        lines = [json.dumps({"body": paragraph}) + "\n" for paragraph in paragraphs]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    path = tmp_path / "data.yaml"
    path.write_text(f"""
tokenizer: {tmp_path / "tokenizer"}
sources:
  x: {{paths: [{tmp_path / "x.jsonl"}], text_field: body, weight: 3, cleaning: {{min_document_characters: 5}}}}
  d: {{paths: [{tmp_path / "d.jsonl"}], text_field: body, weight: 1}}
  k: {{paths: [{tmp_path / "k.jsonl"}], text_field: body, weight: 4}}
""")
    return path


def trained(path: Path, out: Path, **options: Any) -> dict[str, Any]:
    metadata = train_on(described_sources(load_description(path)), VOCABULARY, out, **options)
    training: dict[str, Any] = metadata["training"]
    return training


def test_the_metadata_says_what_each_source_gave(described: Path, tmp_path: Path) -> None:
    training = trained(described, tmp_path / "out", max_input_bytes=8220)
    found = training["sources"]
    assert {name: source["share"] for name, source in found.items()} == {"x": 0.375, "d": 0.125, "k": 0.5}
    assert found["k"] == {"share": 0.5, "inputs": ["k.jsonl"], "paragraphs": 20, "bytes": 220, "all_of_it": True}
    assert found["x"]["bytes"] == pytest.approx(6000, abs=20) and not found["x"]["all_of_it"]
    assert found["d"]["bytes"] == pytest.approx(2000, abs=20)
    assert training["bytes"] == sum(source["bytes"] for source in found.values()) <= 8220
    assert training["paragraphs"] == sum(source["paragraphs"] for source in found.values())
    assert json.loads((tmp_path / "out" / "metadata.json").read_text())["training"] == training


def test_documents_that_cleaning_leaves_out_do_not_shape_the_vocabulary(described: Path, tmp_path: Path) -> None:
    trained(described, tmp_path / "cleaned", character_coverage=1.0)
    described.write_text(described.read_text().replace(", cleaning: {min_document_characters: 5}", ""))
    trained(described, tmp_path / "not", character_coverage=1.0)
    characters = {
        name: {tokenizer.piece(token).strip("▁") for token in range(260, tokenizer.pieces)}
        for name in ("cleaned", "not")
        for tokenizer in [Tokenizer.load(tmp_path / name)]
    }
    assert "q" in characters["not"] and not any("q" in piece for piece in characters["cleaned"])


def test_the_same_description_gives_the_same_bytes(described: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        trained(described, tmp_path / name, max_input_bytes=8000)
    for file in ("spm.model", "metadata.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


def test_a_source_that_cleaning_leaves_without_text_is_named(described: Path, tmp_path: Path) -> None:
    described.write_text(described.read_text().replace("min_document_characters: 5", "min_document_characters: 500"))
    with pytest.raises(InputError, match=rf"^sources\.x: {re.escape(str(tmp_path / 'x.jsonl'))}: no text in it"):
        trained(described, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()
