"""A tokenizer grows by whole words, and says what it cannot take and how large the model must be."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.add_tokens import RELEASED_ROWS, _rows, add_tokens, read_tokens
from deberta_scale.data.tokenizer import Tokenizer, TokenizerError
from tests.launching import ROOT


@pytest.fixture(scope="session")
def tokenizer_dir(prepared_shards: Path) -> Path:
    return prepared_shards / "tokenizer"


def run_tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "data_prep" / "add_tokens.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)


def test_the_copy_has_the_tokens_and_everything_else_as_before(tokenizer_dir: Path, tmp_path: Path) -> None:
    metadata = add_tokens(tokenizer_dir, ["<a>", "New York"], tmp_path / "out")
    grown, before = Tokenizer.load(tmp_path / "out"), Tokenizer.load(tokenizer_dir)
    assert grown.added_tokens == ("<a>", "New York")
    assert metadata == grown.metadata() and metadata["training"] == before.metadata()["training"]
    assert (tmp_path / "out" / "spm.model").read_bytes() == (tokenizer_dir / "spm.model").read_bytes()
    assert grown.sha256 != before.sha256


def test_more_can_be_added_later_and_come_after(tokenizer_dir: Path, tmp_path: Path) -> None:
    add_tokens(tokenizer_dir, ["<a>"], tmp_path / "one")
    add_tokens(tmp_path / "one", ["<b>"], tmp_path / "two")
    add_tokens(tokenizer_dir, ["<a>", "<b>"], tmp_path / "both")
    assert Tokenizer.load(tmp_path / "two").metadata() == Tokenizer.load(tmp_path / "both").metadata()


def test_a_released_directory_grows_too(tokenizer_dir: Path, tmp_path: Path) -> None:
    released = tmp_path / "released"
    released.mkdir()
    (released / "spm.model").write_bytes((tokenizer_dir / "spm.model").read_bytes())
    add_tokens(released, ["<a>"], tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["metadata.json", "spm.model"]


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (["<a>", "<a>"], "cannot add '<a>': it is given twice; give it once"),
        ([""], "cannot add '': it is empty; give a token"),
        (["\u3000"], "cannot add '\\u3000': it is empty; give a token"),
        (["<a> "], "cannot add '<a> ': it begins or ends with white space"),
        (["a\nb"], "holds a line feed, which no paragraph does; leave that out"),
        (["[MASK]"], "cannot add '[MASK]': the tokenizer has it, as a special piece"),
        (["the"], "cannot add 'the': it is already the piece '▁the' of the vocabulary"),
        (["ing"], "cannot add 'ing': it is already the piece 'ing' of the vocabulary"),
        ([], "no token to add; give at least one"),
    ],
)
def test_tokens_that_make_no_sense_are_refused(
    tokenizer_dir: Path, tmp_path: Path, tokens: list[str], expected: str
) -> None:
    with pytest.raises(TokenizerError) as caught:
        add_tokens(tokenizer_dir, tokens, tmp_path / "out")
    assert str(caught.value).startswith(f"{tokenizer_dir}: ") and expected in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_token_added_before_is_refused_with_its_id(tokenizer_dir: Path, tmp_path: Path) -> None:
    add_tokens(tokenizer_dir, ["<a>"], tmp_path / "one")
    with pytest.raises(TokenizerError, match=r"cannot add '<a>': it was added before, with the id 601"):
        add_tokens(tmp_path / "one", ["<a>"], tmp_path / "two")


def test_files_hold_a_token_a_line_and_words_stand_for_themselves(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("New York\r\n\n<a>\n", encoding="utf-8")
    assert read_tokens(["<b>", str(tmp_path / "list.txt")]) == ["<b>", "New York", "<a>"]
    (tmp_path / "list.txt").write_bytes(b"\xff")
    with pytest.raises(TokenizerError, match=r"list\.txt: not UTF-8"):
        read_tokens([str(tmp_path / "list.txt")])


def test_what_a_released_model_lacks_is_said() -> None:
    assert _rows(128_001, RELEASED_ROWS) == "a model with model.vocab_size below 128100 must grow to that"
    assert _rows(128_001, RELEASED_ROWS + 3).endswith("released V2 and V3 models have 128,100 rows, 3 too few")


def test_the_command_says_what_it_did_and_what_comes_next(tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("<a>\nNew York\n")
    done = run_tool("--tokenizer", tokenizer_dir, "--tokens", tmp_path / "list.txt", "<b>", "--out", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"adding 3 token(s) to {tokenizer_dir}",
        f"wrote {tmp_path / 'out'}: the ids 601 to 603, in the order given",
        "a model with model.vocab_size below 604 must grow to that",
        f"next: python data_prep/tokenize_corpus.py --input ... --tokenizer {tmp_path / 'out'} --out SHARDS",
    ]
    done = run_tool("--tokenizer", tokenizer_dir, "--tokens", "<b>", "--out", tmp_path / "out2", "--json")
    answer = json.loads(done.stdout)
    assert answer["ids"] == {"<b>": 601} and answer["vocabulary_size"] == 602
    failed = run_tool("--tokenizer", tokenizer_dir, "--tokens", "the", "--out", tmp_path / "out3")
    assert failed.returncode == 1 and failed.stderr.startswith(f"error: {tokenizer_dir}: cannot add 'the'")
    assert "usage: add_tokens.py" in run_tool("--help").stdout
