"""The data preparation tools as a person runs them: exit codes, one message, machine-readable answers."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.launching import ROOT

TOOLS = ("train_tokenizer", "tokenize_corpus", "inspect_shards", "verify_shards", "add_tokens")


def run_tool(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "data_prep" / f"{name}.py", *arguments]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60, check=False)


def answer_of(name: str, *arguments: str | Path) -> str:
    """Standard output of a run that ends well and says nothing on standard error."""
    done = run_tool(name, *arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def json_of(name: str, *arguments: str | Path) -> Any:
    return json.loads(answer_of(name, *arguments, "--json"))


def error_of(name: str, *arguments: str | Path) -> str:
    """The message of a run that ends with exit code 1 and one line on standard error."""
    done = run_tool(name, *arguments)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture
def text(tmp_path: Path, sample_documents: list[str]) -> Path:
    """Forty short documents in a file."""
    path = tmp_path / "text.txt"
    path.write_text("\n\n".join(paragraph for document in sample_documents[:3] for paragraph in document.split("\n")))
    return path


@pytest.fixture
def shards_dir(prepared_shards: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(prepared_shards, tmp_path / "shards"))


def flip_last_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", TOOLS)
def test_help_shows_what_the_tool_does_and_how_to_call_it(name: str) -> None:
    answer = answer_of(name, "--help")
    assert f"usage: {name}.py" in answer and f"`{name}.py " in answer


@pytest.mark.parametrize("name", TOOLS)
def test_wrong_usage_ends_with_code_2(name: str) -> None:
    done = run_tool(name, "--no-such-option")
    assert done.returncode == 2 and "error: " in done.stderr


@pytest.mark.parametrize(
    ("name", "option", "value", "expected"),
    [
        ("train_tokenizer", "--vocab-size", "0", "0 is not a positive number"),
        ("train_tokenizer", "--character-coverage", "0.5", "0.5 is not between 0.98 and 1"),
        ("tokenize_corpus", "--workers", "-1", "-1 is not a positive number"),
        ("tokenize_corpus", "--validation-fraction", "1", "1 is not between 0 and 1"),
        ("inspect_shards", "--split", "test", "invalid choice: 'test'"),
    ],
)
def test_values_out_of_range_say_what_would_work(name: str, option: str, value: str, expected: str) -> None:
    done = run_tool(name, f"{option}={value}")
    assert done.returncode == 2 and expected in done.stderr


def test_each_tool_says_what_it_does_and_names_the_next_command(text: Path, tmp_path: Path) -> None:
    tokenizer, shards = tmp_path / "tokenizer", tmp_path / "shards"
    answer = answer_of("train_tokenizer", "--input", text, "--vocab-size", "400", "--out", tokenizer)
    assert answer.startswith("training 400 unigram pieces on 1 file(s)\n") and f"wrote {tokenizer}" in answer
    assert f"next: python data_prep/tokenize_corpus.py --input ... --tokenizer {tokenizer}" in answer
    answer = answer_of("tokenize_corpus", "--input", text, "--tokenizer", tokenizer, "--out", shards)
    assert answer.startswith("tokenizing 1 file(s) with 1 worker(s) into ") and f"wrote {shards}" in answer
    assert f"next: python data_prep/inspect_shards.py {shards}" in answer
    answer = answer_of("inspect_shards", shards)
    assert answer.startswith(f"looking into {shards}\n")
    assert f"next: python launch/plan.py configs/pretrain/tiny.yaml data.shards={shards}" in answer
    answer = answer_of("verify_shards", shards)
    assert answer.startswith(f"digesting every file of {shards} again\n") and "train/00000: ok" in answer
    assert f"next: python launch/plan.py configs/pretrain/tiny.yaml data.shards={shards}" in answer


def test_each_tool_answers_machines_in_json(text: Path, tmp_path: Path) -> None:
    tokenizer, shards = tmp_path / "tokenizer", tmp_path / "shards"
    trained = json_of("train_tokenizer", "--input", text, "--vocab-size", "400", "--out", tokenizer)
    assert (trained["out"], trained["mask_id"]) == (str(tokenizer), 400)
    tokenized = json_of("tokenize_corpus", "--input", text, "--tokenizer", tokenizer, "--out", shards, "--workers", "2")
    inspected = json_of("inspect_shards", shards)
    assert inspected["splits"]["train"]["tokens"] == tokenized["train"]["tokens"] > 0
    assert json_of("verify_shards", shards)["problems"] == []


def test_inspection_shows_documents_with_the_borders_of_their_pieces(prepared_shards: Path) -> None:
    answer = answer_of("inspect_shards", prepared_shards, "--split", "train", "--documents", "2")
    assert "validation" not in answer
    assert answer.count("    text:   ") == answer.count("    pieces: ") == 2
    assert "text:   Emma Woodhouse, handsome, clever, and rich, with a " in answer
    [example, _] = json_of("inspect_shards", prepared_shards, "--documents", "2")["splits"]["train"]["examples"]
    assert "    pieces: " + " ".join(example["pieces"][0]) in answer
    assert "".join(example["pieces"][0]).replace("▁", " ").strip() == example["text"][0]


def test_the_histogram_counts_every_document_once(prepared_shards: Path) -> None:
    facts = json_of("inspect_shards", prepared_shards, "--documents", "1000")["splits"]["train"]
    lengths = [example["tokens"] for example in facts["examples"]]
    assert len(lengths) == facts["documents"] and sum(lengths) == facts["tokens"]
    for bucket in facts["histogram"]:
        inside = [length for length in lengths if bucket["shortest"] <= length <= bucket["longest"]]
        assert bucket["documents"] == len(inside)
    assert sum(bucket["documents"] for bucket in facts["histogram"]) == facts["documents"]


@pytest.mark.parametrize("name", ["inspect_shards", "verify_shards"])
def test_a_directory_that_holds_no_shards_is_named(tmp_path: Path, name: str) -> None:
    expected = f"{tmp_path / 'train' / 'manifest.json'}: cannot be read (No such file or directory)"
    assert error_of(name, tmp_path).startswith(expected)


@pytest.mark.parametrize("name", ["inspect_shards", "verify_shards"])
def test_a_truncated_file_is_named(shards_dir: Path, name: str) -> None:
    path = shards_dir / "validation" / "00000.bin"
    path.write_bytes(path.read_bytes()[:-4])
    assert error_of(name, shards_dir).startswith(f"{path}: ")


@pytest.mark.parametrize("name", ["inspect_shards", "verify_shards"])
def test_shards_beside_another_tokenizer_are_refused(shards_dir: Path, text: Path, tmp_path: Path, name: str) -> None:
    answer_of("train_tokenizer", "--input", text, "--vocab-size", "400", "--out", tmp_path / "other")
    shutil.rmtree(shards_dir / "tokenizer")
    (tmp_path / "other").rename(shards_dir / "tokenizer")
    done = run_tool(name, shards_dir)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "train" in done.stderr and f"made with another tokenizer than {shards_dir / 'tokenizer'}" in done.stderr


@pytest.mark.parametrize("file", ["train/00000.bin", "train/00000.idx", "validation/00000.bin", "tokenizer/spm.model"])
def test_verifying_names_a_flipped_file(shards_dir: Path, file: str) -> None:
    flip_last_bit(shards_dir / file)
    assert error_of("verify_shards", shards_dir).startswith(f"{shards_dir / file}: ")


def test_verifying_names_every_flipped_file_in_json_too(shards_dir: Path) -> None:
    for split in ("train", "validation"):
        flip_last_bit(shards_dir / split / "00000.bin")
    done = run_tool("verify_shards", shards_dir, "--json")
    assert done.returncode == 1
    problems = json.loads(done.stdout)["problems"]
    assert [problem.split(":")[0] for problem in problems] == [
        str(shards_dir / split / "00000.bin") for split in ("train", "validation")
    ]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_broken_line_is_named_and_leaves_nothing_behind(prepared_shards: Path, tmp_path: Path, workers: str) -> None:
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "good"}\n' * 200 + '{"text": bad}\n' + '{"text": "good"}\n' * 200)
    options = ["--tokenizer", str(prepared_shards / "tokenizer"), "--workers", workers, "--shard-tokens", "500"]
    message = error_of("tokenize_corpus", "--input", broken, "--out", tmp_path / "out", *options)
    assert message.startswith(f"{broken}, line 201: not valid JSON")
    assert list(tmp_path.iterdir()) == [broken]


def test_an_output_directory_in_use_is_refused_before_any_work(prepared_shards: Path, text: Path) -> None:
    for name, options in {
        "train_tokenizer": ["--vocab-size", "400"],
        "tokenize_corpus": ["--tokenizer", str(prepared_shards / "tokenizer")],
    }.items():
        message = error_of(name, "--input", text, "--out", prepared_shards, *options)
        assert message.startswith(f"{prepared_shards} exists and is not empty; give another directory")


def test_a_directory_that_is_no_tokenizer_is_named(text: Path, tmp_path: Path) -> None:
    message = error_of("tokenize_corpus", "--input", text, "--tokenizer", tmp_path, "--out", tmp_path / "out")
    assert message.startswith(f"{tmp_path / 'metadata.json'}: cannot be read")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "give --input and --tokenizer, or --data"),
        (["--input", "TEXT"], "give --input and --tokenizer, or --data"),
        (["--data", "DATA", "--text-field", "text"], "leave out --text-field (in the file: sources.NAME.text_field)"),
        (["--data", "DATA", "--document-boundary", "file"], "leave out --document-boundary (in the file: sources."),
        (
            ["--data", "DATA", "--input", "TEXT", "--tokenizer", "TEXT", "--validation-fraction", "0.1"],
            "leave out --input (in the file: sources.NAME.paths), --tokenizer (in the file: tokenizer),"
            " --validation-fraction (in the file: validation_fraction)",
        ),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_what_a_data_description_says_is_no_option_beside_it(
    description: Path, text: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    places = {"DATA": str(description), "TEXT": str(text)}
    before = sorted(tmp_path.iterdir())
    words = [places.get(option, option) for option in options]
    assert expected in error_of("tokenize_corpus", "--out", tmp_path / "out", *words)
    assert sorted(tmp_path.iterdir()) == before


def test_several_sources_are_one_json_object_and_what_was_done_before_is_said(
    prepared_shards: Path, sample_documents: list[str], tmp_path: Path
) -> None:
    for name in ("novels", "notes"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in sample_documents))
    path = tmp_path / "data.yaml"
    sources = ", ".join(f"{name}: {{paths: [{tmp_path / name}.jsonl]}}" for name in ("novels", "notes"))
    path.write_text(f"tokenizer: {prepared_shards / 'tokenizer'}\nsources: {{{sources}}}\nvalidation_fraction: 0.2\n")
    out = tmp_path / "out"
    words = ["--data", path, "--out", out]
    found = json_of("tokenize_corpus", *words)
    assert (found["out"], found["mixture"]) == (str(out), str(out / "mixture.yaml"))
    assert list(found["sources"]) == ["novels", "notes"]
    assert not any(source["already_done"] for source in found["sources"].values())
    assert found["sources"]["notes"]["train"]["documents"] == found["sources"]["novels"]["train"]["documents"] > 20

    again = json_of("tokenize_corpus", *words)
    assert all(source.pop("already_done") for source in again["sources"].values())
    for source in found["sources"].values():
        del source["already_done"]
    assert again == found
    said = answer_of("tokenize_corpus", *words)
    assert f"{out / 'notes'} is already done, judged by names and sizes of its input files" in said
    assert "tokenizing" not in said


@pytest.fixture
def description(text: Path, tmp_path: Path) -> Path:
    """Of two sources, of which one has little text."""
    (tmp_path / "little.txt").write_text("a little text")
    path = tmp_path / "data.yaml"
    sources = f"{{much: {{paths: [{text}]}}, little: {{paths: [{tmp_path / 'little.txt'}]}}}}"
    path.write_text(f"tokenizer: {tmp_path / 'tokenizer'}\nsources: {sources}\n")
    return path


def test_a_tokenizer_of_a_data_description_lands_where_that_names_it(description: Path, tmp_path: Path) -> None:
    options = ["--vocab-size", "340", "--max-input-bytes", "20000", "--user-symbols", "<ent>", "</ent>"]
    answer = answer_of("train_tokenizer", "--data", description, *options)
    much = r"^much: \d+ paragraphs, 0\.0 MB, 99\.\d+% of the sample \(share 50\.00%\)$"
    assert re.search(much, answer, re.MULTILINE)
    little = r"^little: 1 paragraphs, .* \(share 50\.00%\): all the text it has; the others give more$"
    assert re.search(little, answer, re.MULTILINE)
    assert f"next: python data_prep/tokenize_corpus.py --data {description} --out SHARDS" in answer.splitlines()
    message = error_of("train_tokenizer", "--data", description, *options)
    assert message.startswith(f"{tmp_path / 'tokenizer'} exists and is not empty; give another directory")
    found = json_of("train_tokenizer", "--data", description, *options, "--out", tmp_path / "other")
    assert found["out"] == str(tmp_path / "other") and found["training"]["user_symbols"] == ["<ent>", "</ent>"]
    assert sum(source["bytes"] for source in found["training"]["sources"].values()) <= 20000


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "give --input and --out, or --data"),
        (["--input", "TEXT"], "give --input and --out, or --data"),
        (["--data", "DATA", "--input", "TEXT"], "leave out --input (in the file: sources.NAME.paths)"),
        (["--data", "DATA", "--text-field", "text"], "leave out --text-field (in the file: sources.NAME.text_field)"),
        (["--data", "DATA", "--user-symbols", "<a>", "<a>"], "--user-symbols: '<a>' is given twice"),
        (["--data", "DATA.none"], "DATA.none: cannot be read (No such file or directory)"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together_are_named(
    description: Path, text: Path, tmp_path: Path, options: list[str], expected: str
) -> None:
    places = {"DATA": str(description), "TEXT": str(text)}
    message = error_of("train_tokenizer", "--vocab-size", "400", *(places.get(option, option) for option in options))
    assert expected in message and not (tmp_path / "tokenizer").exists()
