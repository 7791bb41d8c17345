"""What paths, directories, links and patterns mean, and that nothing in them is left out without a word."""

import errno
import os
from pathlib import Path

import pytest

from data_prep.inputs import InputError, InputFile, Reading, documents, find_inputs, plan_units
from tests.reading import json_lines, message_of, read, write, write_parquet, write_saved_dataset


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """text/a.txt, text/b/c.jsonl.zst, text/b/d.parquet."""
    (tmp_path / "text" / "b").mkdir(parents=True)
    write(tmp_path / "text" / "a.txt", "of a")
    write(tmp_path / "text" / "b" / "c.jsonl.zst", json_lines("of c"))
    write_parquet(tmp_path / "text" / "b" / "d.parquet", ["of d"])
    return tmp_path / "text"


def names(*paths: Path) -> list[str]:
    return [file.name for file in find_inputs(list(paths))]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("**/*.jsonl.zst", ["b/c.jsonl.zst"]),
        ("b/[cd].*", ["c.jsonl.zst", "d.parquet"]),
        ("?", ["b/c.jsonl.zst", "b/d.parquet"]),
        ("**", ["a.txt", "b/c.jsonl.zst", "b/d.parquet"]),
    ],
)
def test_a_pattern_matches_files_and_directories_as_in_a_shell(texts: Path, pattern: str, expected: list[str]) -> None:
    assert names(texts / pattern) == expected


def test_names_of_a_pattern_begin_where_the_pattern_does(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(texts.parent)
    assert names(Path("text/*/c.*")) == ["b/c.jsonl.zst"]
    assert names(Path("*/b/*")) == ["text/b/c.jsonl.zst", "text/b/d.parquet"]


def test_a_pattern_without_a_match_is_an_error(texts: Path) -> None:
    assert f"{texts}/*.csv: nothing matches this pattern, seen from {Path.cwd()}" in message_of(texts / "*.csv")


def test_a_pattern_that_matches_another_kind_of_file_is_an_error_that_names_it(texts: Path) -> None:
    write(texts / "notes.md", "text")
    assert f"{texts / 'notes.md'}: unknown kind of file" in message_of(texts / "*")


def test_a_file_whose_name_is_a_pattern_is_that_file(texts: Path) -> None:
    assert read(write(texts / "[ab].txt", "itself")) == [["itself"]]


def test_a_path_with_a_zero_byte_as_yaml_can_write_it_is_an_error(tmp_path: Path) -> None:
    assert "no path has a zero byte in it" in message_of(tmp_path / "a\0*.txt")


def test_a_directory_whose_name_ends_like_a_file_is_a_directory(tmp_path: Path) -> None:
    (tmp_path / "x.txt").mkdir()
    write(tmp_path / "x.txt" / "a.txt", "text")
    assert names(tmp_path / "x.txt") == ["a.txt"]
    assert names(tmp_path) == ["x.txt/a.txt"]


def test_a_saved_dataset_inside_a_directory_is_one_input_of_it(texts: Path) -> None:
    write_saved_dataset(texts / "e", ["of e"])
    write(texts / "e" / "cache-0123.arrow", "what datasets keeps beside it")
    assert names(texts)[-1] == "e/data-00000-of-00001.arrow"
    assert read(texts) == [["of a"], ["of c"], ["of d"], ["of e"]]


def test_linked_directories_are_followed(texts: Path) -> None:
    (texts.parent / "other").mkdir()
    (texts.parent / "other" / "link").symlink_to(texts / "b")
    assert names(texts.parent / "other") == ["link/c.jsonl.zst", "link/d.parquet"]


def test_a_link_back_to_a_directory_above_is_an_error(texts: Path) -> None:
    (texts / "b" / "up").symlink_to(texts)
    assert f"{texts / 'b' / 'up'}: a link that leads back to {texts}" in message_of(texts)


@pytest.mark.parametrize("whole_directory", [True, False])
def test_a_broken_link_is_an_error(tmp_path: Path, whole_directory: bool) -> None:
    link = tmp_path / "a.txt"
    link.symlink_to("moved.txt")
    expected = f"{link}: a link to moved.txt, which is not there; mend or remove the link"
    assert message_of(tmp_path if whole_directory else link) == expected


@pytest.mark.parametrize("whole_directory", [True, False])
def test_a_pipe_is_an_error_rather_than_an_endless_wait(tmp_path: Path, whole_directory: bool) -> None:
    os.mkfifo(tmp_path / "a.txt")
    expected = f"{tmp_path / 'a.txt'}: not a regular file, so that it can be read only once"
    assert expected in message_of(tmp_path if whole_directory else tmp_path / "a.txt")


def test_a_pipe_beside_the_input_does_not_matter(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    write(tmp_path / "a.txt", "text")
    assert read(tmp_path) == [["text"]]


def refuse(*_arguments: object, **_options: object) -> None:
    """What opening a file or directory without permission does, also to root, who may read everything."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


@pytest.mark.parametrize("name", ["a.txt", "b/c.jsonl.zst", "b/d.parquet"])
@pytest.mark.parametrize("unit_bytes", [1, 1000])
def test_a_file_without_permission_is_named(
    texts: Path, monkeypatch: pytest.MonkeyPatch, name: str, unit_bytes: int
) -> None:
    monkeypatch.setattr(Path, "open", refuse)
    message = message_of(texts / name, unit_bytes=unit_bytes)
    assert message == f"{texts / name}: cannot be read (Permission denied)"


def test_a_directory_without_permission_is_named_rather_than_passed_over(
    texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    list_directory = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (refuse if Path(path).name == "b" else list_directory)(path))
    assert message_of(texts) == f"{texts / 'b'}: cannot be read (Permission denied)"


def read_found(files: list[InputFile], unit_bytes: int) -> None:
    for unit in plan_units(files, Reading(), unit_bytes):
        for part in unit:
            list(documents(part, Reading()))


@pytest.mark.parametrize("name", ["a.txt", "b/c.jsonl.zst", "b/d.parquet"])
@pytest.mark.parametrize("unit_bytes", [1, 1000])
def test_a_file_that_vanishes_or_changes_after_it_was_found_is_an_error(
    texts: Path, name: str, unit_bytes: int
) -> None:
    files = find_inputs([texts / name])
    with (texts / name).open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(InputError, match=f"{name}: has changed since it was found, from .* bytes; start again"):
        read_found(files, unit_bytes)
    (texts / name).unlink()
    with pytest.raises(InputError, match=f"{name}: cannot be read .No such file or directory"):
        read_found(files, unit_bytes)


def test_a_plan_knows_files_again_by_name_size_and_time(texts: Path) -> None:
    file = find_inputs([texts / "a.txt"])[0]
    assert file.identity() == {"name": "a.txt", "bytes": 4, "modified_ns": (texts / "a.txt").stat().st_mtime_ns}


def test_a_part_tells_where_its_documents_are_from(texts: Path) -> None:
    units = plan_units(find_inputs([texts]), Reading(), unit_bytes=2)
    origins = [part.origin() for unit in units for part in unit]
    assert origins[:2] == [{"input": "a.txt", "bytes": [0, 2]}, {"input": "a.txt", "bytes": [2, 4]}]
    size = (texts / "b" / "d.parquet").stat().st_size
    assert origins[3] == {"input": "b/d.parquet", "bytes": [0, size], "pieces": [0, 1]}
