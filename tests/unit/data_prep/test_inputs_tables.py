"""Parquet files, saved datasets and streams: each row once whatever the unit, and what is wrong with one is named."""

import json
import random
import re
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.inputs import Reading, documents, find_inputs, plan_units
from tests.reading import json_lines, message_of, read, write, write_parquet, write_saved_dataset

TEXTS = ["first line\n\n second line ", "é\u2028😀", "", None, "nul \0 within", "last\r\nline"]
AS_DOCUMENTS = [["first line", "second line"], ["é\u2028😀"], [], [], ["nul \0 within"], ["last", "line"]]
shared_directory = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(autouse=True)
def _nothing_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and no lock files in the home directory."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture
def stream(tmp_path: Path) -> Path:
    """The name of a stream of three shards: a folder that `datasets` loads as it does one of the hub."""
    (tmp_path / "folder").mkdir()
    for number in range(3):
        write(tmp_path / "folder" / f"train-{number}.jsonl", json_lines(*(f"{number} {row}" for row in range(4))))
    return Path(f"hub:{tmp_path}/folder@train")


def test_each_row_of_parquet_is_a_document(tmp_path: Path) -> None:
    assert read(write_parquet(tmp_path / "a.parquet", TEXTS)) == AS_DOCUMENTS


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())])
def test_strings_may_be_stored_in_every_way(tmp_path: Path, kind: pyarrow.DataType) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"body": pyarrow.array(TEXTS).cast(kind)}), tmp_path / "a.parquet")
    assert read(tmp_path, reading=Reading(text_field="body")) == AS_DOCUMENTS


def test_a_column_whose_name_has_a_dot_is_not_a_column_inside_another(tmp_path: Path) -> None:
    table = pyarrow.table({"a": [{"text": "inner"}], "a.text": ["outer"]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path, reading=Reading(text_field="a.text")) == [["outer"]]


def test_row_groups_are_units_and_fill_larger_ones(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [f"text {number}" for number in range(10)], group_rows=3)
    files = find_inputs([path])
    small, large = (plan_units(files, Reading(), unit_bytes) for unit_bytes in (1, path.stat().st_size))
    assert [[part.pieces for part in unit] for unit in small] == [[(0, 1)], [(1, 2)], [(2, 3)], [(3, 4)]]
    assert [[part.pieces for part in unit] for unit in large] == [[(0, 4)]]
    assert (large[0][0].start, large[0][0].end) == (0, path.stat().st_size)


def test_a_parquet_file_is_never_whole_in_memory(tmp_path: Path) -> None:
    random_letters = random.Random(0).randbytes(4_000_000).hex()
    texts = [random_letters[start : start + 2000] for start in range(0, len(random_letters), 2000)]
    path = write_parquet(tmp_path / "a.parquet", texts, group_rows=250)
    pool, largest = pyarrow.default_memory_pool(), 0
    before = pool.bytes_allocated()
    [[part]] = plan_units(find_inputs([path]), Reading(), 2**40)
    for _ in documents(part, Reading()):
        largest = max(largest, pool.bytes_allocated() - before)
    assert 0 < largest < len(random_letters) / 3


def test_a_saved_dataset_is_read_as_datasets_reads_it(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": [f"text {number}" for number in range(2500)]}).shuffle(seed=0)
    rows.save_to_disk(tmp_path / "saved", num_shards=2)
    expected = [[text] for text in datasets.load_from_disk(str(tmp_path / "saved"))["text"]]
    assert read(tmp_path / "saved") == read(tmp_path / "saved", unit_bytes=1) == expected
    units = plan_units(find_inputs([tmp_path / "saved"]), Reading(), 1)
    assert [part.pieces for unit in units for part in unit] == [(0, 1), (1, 2)] * 2


def test_a_saved_dictionary_of_datasets_gives_its_splits_by_name(tmp_path: Path) -> None:
    splits = {name: datasets.Dataset.from_dict({"text": [f"of {name}"]}) for name in ("train", "test")}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    assert read(tmp_path / "saved") == [["of test"], ["of train"]]
    assert read(tmp_path / "saved" / "train") == [["of train"]]


def test_an_empty_table_has_no_documents(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [])
    write_saved_dataset(tmp_path / "saved", [])
    assert read(tmp_path) == []


tables = st.lists(st.none() | st.text(max_size=8), max_size=12)


@shared_directory
@given(texts=tables, piece_rows=st.integers(1, 5), unit_bytes=st.integers(1, 3000))
def test_cutting_tables_anywhere_gives_each_row_once(
    tmp_path: Path, texts: list[str | None], piece_rows: int, unit_bytes: int
) -> None:
    expected = [[line for each in (text or "").split("\n") if (line := each.strip())] for text in texts]
    parquet = write_parquet(tmp_path / "a.parquet", texts, piece_rows)
    write_saved_dataset(tmp_path / "saved", texts, piece_rows)
    assert read(parquet, unit_bytes=unit_bytes) == read(tmp_path / "saved", unit_bytes=unit_bytes) == expected


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("txt", "the table has no column 'txt'; did you mean the text field 'text'?"),
        ("body", "the table has no column 'body'; it has"),
        ("number", "the column 'number' does not hold strings but int64; columns of strings: 'text'"),
    ],
)
def test_a_table_without_the_text_is_named_before_any_work(tmp_path: Path, field: str, expected: str) -> None:
    parquet = write_parquet(tmp_path / "a.parquet", TEXTS)
    arrow = write_saved_dataset(tmp_path / "saved", TEXTS)
    for path, where in ((parquet, parquet), (arrow.parent, arrow)):
        message = message_of(path, reading=Reading(text_field=field))
        assert message.startswith(f"{where}: {expected}")


@pytest.mark.parametrize("unit_bytes", [1, 2**40])
def test_a_row_that_is_not_utf8_is_an_error_with_its_number(tmp_path: Path, unit_bytes: int) -> None:
    for path in (
        write_parquet(tmp_path / "a.parquet", ["good", "caf?", "good"], 1),
        write_saved_dataset(tmp_path / "saved", ["good", "caf?", "good"], 1),
    ):
        content = path.read_bytes()
        if path.suffix == ".parquet":  # without check sums and compression, so that the bytes can be changed
            table = pyarrow.parquet.read_table(path)
            pyarrow.parquet.write_table(table, path, row_group_size=1, compression="none", use_dictionary=False)
            content = path.read_bytes()
        path.write_bytes(content.replace(b"caf?", b"caf\xe9"))
        found = path if path.suffix == ".parquet" else path.parent
        expected = f"{path}, row 1 (from 0): 'text' is not UTF-8: byte 0xe9 at offset 3; write the table again"
        assert message_of(found, unit_bytes=unit_bytes) == expected


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("{", "not what Dataset.save_to_disk writes (JSONDecodeError"),
        ("[]", "not what Dataset.save_to_disk writes (TypeError"),
        ('{"_data_files": [{"filename": "../a.arrow"}]}', "file names that are not of this directory: ['../a.arrow']"),
        ('{"_data_files": [{"filename": "lost.arrow"}]}', "state.json names this file, but it is not there"),
        ('{"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}', "only some rows of its files are"),
    ],
)
def test_a_damaged_saved_dataset_is_named(tmp_path: Path, state: str, expected: str) -> None:
    write_saved_dataset(tmp_path, TEXTS)
    (tmp_path / "state.json").write_text(state)
    assert expected in message_of(tmp_path)


def test_a_stream_is_read_shard_by_shard_each_a_unit(stream: Path) -> None:
    assert read(stream) == [[f"{number} {row}"] for number in range(3) for row in range(4)]
    units = plan_units(find_inputs([stream]), Reading(), 2**40)
    assert [[part.pieces for part in unit] for unit in units] == [[(0, 1)], [(1, 2)], [(2, 3)]]


def test_a_plan_knows_a_stream_again_by_its_files(stream: Path) -> None:
    [file] = find_inputs([stream])
    assert file.identity()["name"] == str(stream)
    assert re.fullmatch("[0-9a-f]{64}", file.identity()["revision"])


def test_the_commit_that_was_found_is_the_one_that_is_read(stream: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    load = datasets.load_dataset_builder
    folder = str(stream).removeprefix("hub:").removesuffix("@train")

    def of_a_hub(name: str, config: str | None, revision: str | None) -> Any:
        asked.append((name, config, revision))
        builder = load(folder)
        builder.base_path = f"hf://datasets/{name}@{'c0ffee' * 6}c0ff"
        return builder

    monkeypatch.setattr(datasets, "load_dataset_builder", of_a_hub)
    assert len(read(Path("hub:some/texts:english@train"))) == 12
    assert asked == [("some/texts", "english", None), ("some/texts", "english", "c0ffee" * 6 + "c0ff")]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:some/texts", "expected hub:NAME@SPLIT or hub:NAME:CONFIG@SPLIT, for instance"),
        ("hub:some/texts:@train", "expected hub:NAME@SPLIT or hub:NAME:CONFIG@SPLIT, for instance"),
        ("hub:@train", "expected hub:NAME@SPLIT or hub:NAME:CONFIG@SPLIT, for instance"),
        ("hub:some/texts@train", "the hub cannot be reached (Couldn't reach 'some/texts' on the Hub"),
        ("hub:tests@train", "tests is also a path here, and datasets would read that; give hub:./tests@train"),
        ("hub:{folder}@dev", "datasets cannot load it (Bad split: dev. Available splits: ['train'])"),
        ("hub:{folder}:french@train", "datasets cannot load it (BuilderConfig 'french' not found."),
        ("hub:{folder}/nothing@train", "datasets cannot load it (Couldn't find any data file"),
    ],
)
def test_a_stream_that_cannot_be_opened_is_named(
    stream: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: str
) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent.parent.parent)
    name = name.format(folder=str(stream).removeprefix("hub:").removesuffix("@train"))
    assert message_of(Path(name)).startswith(f"{name}: {expected}")


def test_a_saved_dataset_as_a_stream_is_an_error_that_says_how(tmp_path: Path) -> None:
    write_saved_dataset(tmp_path / "saved", TEXTS)
    expected = f"Dataset.save_to_disk made this directory; give it as it is: {tmp_path}/saved"
    assert expected in message_of(Path(f"hub:{tmp_path}/saved@train"))


def test_a_stream_without_the_text_is_named(stream: Path) -> None:
    message = message_of(stream, reading=Reading(text_field="txt"))
    assert message == f"{stream}: it has no column 'txt'; did you mean the text field 'text'?"


def test_a_stream_that_breaks_says_where(stream: Path, tmp_path: Path) -> None:
    broken = tmp_path / "folder" / "train-1.jsonl"
    broken.write_text(json.dumps({"text": ["a list"]}) + "\n")
    assert message_of(stream).startswith(f"{stream}, shard 1 of 3, record 0 (both from 0): ")
