"""A data description says which text there is; what is wrong with one is said with file, key and the nearest key."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.inputs import InputError, documents, plan_units
from data_prep.sources import DataDescription, find_source_inputs, load_description
from deberta_scale.config import ConfigError
from tests.reading import json_lines, write, write_parquet

ROOT = Path(__file__).parent.parent.parent.parent
EXAMPLE = ROOT / "configs" / "data" / "example.yaml"
SHIPPED = sorted(EXAMPLE.parent.glob("*.yaml"))


def loaded(tmp_path: Path, text: str) -> DataDescription:
    path = tmp_path / "description.yaml"
    path.write_text(text)
    return load_description(path)


def problems_of(tmp_path: Path, text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, text)
    return str(caught.value)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_description_starts_with_its_command_and_what_it_does(path: Path) -> None:
    command, what = path.read_text().splitlines()[:2]
    assert command.startswith("# command: python data_prep/")
    assert f"configs/data/{path.name}" in shlex.split(command)
    assert what.startswith("# what it does: ")


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_description_finds_and_reads_text(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    description = load_description(path)
    for name, files in find_source_inputs(description).items():
        reading = description.sources[name].reading
        units = plan_units(files, reading, 2**40)
        assert sum(bool(document) for unit in units for part in unit for document in documents(part, reading)) > 100


def test_the_sources_that_the_example_only_shows_are_sources_too(tmp_path: Path) -> None:
    lines = re.findall(r"^#   (.*)$", EXAMPLE.read_text(), re.MULTILINE)
    shown = yaml.safe_load("\n".join(lines))
    description = loaded(tmp_path, yaml.safe_dump({"tokenizer": "t", "sources": shown}))
    assert set(description.sources) == {"web", "encyclopedia", "plain"}
    assert description.sources["plain"].reading.document_boundary == "file"


def test_sources_of_several_kinds_are_found_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", json_lines("text"))
    write(tmp_path / "b.txt.gz", "text")
    write_parquet(tmp_path / "c.parquet", ["text"])
    text = "{tokenizer: t, sources: {tables: {paths: ['*.parquet']}, lines: {paths: [a.jsonl, b.txt.gz]}}}"
    found = find_source_inputs(loaded(tmp_path, text))
    assert {name: [file.name for file in files] for name, files in found.items()} == {
        "tables": ["c.parquet"],
        "lines": ["a.jsonl", "b.txt.gz"],
    }


def test_weights_are_relative(tmp_path: Path) -> None:
    text = "{tokenizer: t, sources: {a: {paths: [x], weight: 3}, b: {paths: [y]}, c: {paths: [z], weight: 0}}}"
    assert loaded(tmp_path, text).shares == {"a": 0.75, "b": 0.25, "c": 0.0}


def test_a_source_says_only_what_differs_in_its_cleaning(tmp_path: Path) -> None:
    text = """
    tokenizer: t
    cleaning: {unicode_form: NFC, min_document_characters: 9, language: {callable: "tool:code", keep: [en]}}
    sources:
      a: {paths: [x], cleaning: {min_document_characters: 5, language: {keep: [fr]}}}
      b: {paths: [y]}
      c: {paths: [z], cleaning: {language: null}}
    """
    description = loaded(tmp_path, text)
    of_a = description.sources["a"].cleaning
    assert of_a.language is not None
    assert (of_a.unicode_form, of_a.min_document_characters, of_a.language.keep) == ("NFC", 5, ("fr",))
    assert of_a.language.callable == "tool:code"
    assert description.sources["b"].cleaning == description.cleaning
    assert description.sources["c"].cleaning.language is None
    assert DataDescription.model_validate(description.model_dump(mode="json", exclude_unset=True)) == description


def test_a_mistake_in_the_cleaning_of_all_is_said_once_and_one_of_a_source_with_its_name(tmp_path: Path) -> None:
    text = """
    tokenizer: t
    cleaning: {unicode_from: NFC, min_document_characters: 9}
    sources:
      a: {paths: [x], cleaning: {max_document_characters: 5}}
      b: {paths: [y], cleaning: {language: {calable: "tool:code", keep: [en]}}}
      c: {paths: [z], cleaning: 3}
    """
    assert problems_of(tmp_path, text).splitlines()[1:] == [
        "  sources.b.cleaning.language.callable: required, but not given",
        "  sources.b.cleaning.language.calable: unknown key; did you mean 'sources.b.cleaning.language.callable'?",
        "  sources.c.cleaning: Input should be a valid dictionary or instance of CleaningConfig (given: 3)",
        "  cleaning.unicode_from: unknown key; did you mean 'cleaning.unicode_form'?",
    ]
    message = problems_of(tmp_path, text.replace("unicode_from", "unicode_form"))
    assert "  sources.a.cleaning: max_document_characters 5 is below min_document_characters 9" in message


def test_duplicates_are_looked_for_in_no_source_or_in_all_together(tmp_path: Path) -> None:
    text = "{tokenizer: t, sources: {a: {paths: [x]}}"
    description = loaded(tmp_path, text + "}")
    assert not description.deduplication.documents and not description.deduplication.paragraphs
    assert description.near_duplicates is None
    description = loaded(tmp_path, text + ", deduplication: {documents: true}, near_duplicates: {threshold: 0.7}}")
    assert (description.deduplication.documents, description.deduplication.paragraphs) == (True, False)
    assert description.near_duplicates is not None and description.near_duplicates.threshold == 0.7
    assert DataDescription.model_validate(description.model_dump(mode="json", exclude_unset=True)) == description


def test_mistakes_about_duplicates_are_said_with_their_keys(tmp_path: Path) -> None:
    text = """
    tokenizer: t
    sources: {a: {paths: [x], deduplication: {documents: true}}}
    deduplication: {document: true, min_paragraph_characters: 30}
    near_duplicates: {treshold: 0.8, threshold: 1.2, bands: 0}
    """
    assert set(problems_of(tmp_path, text).splitlines()[1:]) == {
        "  sources.a.deduplication: unknown key",
        "  deduplication.document: unknown key; did you mean 'deduplication.documents'?",
        "  near_duplicates.threshold: Input should be less than or equal to 1 (given: 1.2)",
        "  near_duplicates.bands: Input should be greater than 0 (given: 0)",
        "  near_duplicates.treshold: unknown key; did you mean 'near_duplicates.threshold'?",
    }
    message = problems_of(tmp_path, text.replace("document:", "documents:"))
    assert "  deduplication: min_paragraph_characters 30 has no effect without paragraphs: true; add that" in message


def test_a_description_cannot_be_changed(tmp_path: Path) -> None:
    description = loaded(tmp_path, "{tokenizer: t, sources: {a: {paths: [x]}}}")
    with pytest.raises(ValueError, match="frozen"):
        description.validation_fraction = 0.5  # type: ignore[misc]


def test_every_problem_is_said_at_once_with_key_and_nearest_key(tmp_path: Path) -> None:
    text = """
    tokeniser: t
    sources:
      a: {paths: [x], text_feild: body, weight: -1, document_boundary: no}
      b c: {paths: x}
      d: {paths: []}
    validation_fraction: 1
    """
    lines = problems_of(tmp_path, text).splitlines()
    assert lines[0] == f"{tmp_path / 'description.yaml'}: 9 problem(s)"
    assert set(lines[1:]) == {
        "  tokeniser: unknown key; did you mean 'tokenizer'?",
        "  tokenizer: required, but not given",
        "  sources.a.text_feild: unknown key; did you mean 'sources.a.text_field'?",
        "  sources.a.weight: Input should be greater than or equal to 0 (given: -1)",
        "  sources.a.document_boundary: Input should be 'blank-line' or 'file' (given: False)",
        "  sources.b c.[key]: String should match pattern '^[A-Za-z0-9_-]+$' (given: 'b c')",
        "  sources.b c.paths: expected a list, for instance [x] (given: 'x')",
        "  sources.d.paths: Tuple should have at least 1 item after validation, not 0 (given: [])",
        "  validation_fraction: Input should be less than 1 (given: 1)",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected keys such as tokenizer: and sources:, found NoneType"),
        ("[a]", "expected keys such as tokenizer: and sources:, found list"),
        ("{tokenizer: t, sources: {}}", "sources: Dictionary should have at least 1 item"),
        ("{tokenizer: t, sources: {a: {paths: [x], weight: 0}}}", "the weights of all sources are 0; give at least"),
        ("{tokenizer: t, sources: {a: {paths: [x]}, a: {paths: [y]}}}", "'a' is given twice"),
        ("tokenizer: !!timestamp 2020-99-99", "not valid YAML: month must be in 1..12"),
        ("a: [", "not valid YAML"),
        ("{tokenizer: t, cleaning: &c {language: *c}, sources: {a: {paths: [x], cleaning: *c}}}", "an alias (*name)"),
        ("\0", "not valid YAML"),
        ("[" * 10_000, "not valid YAML: nested too deeply"),
    ],
    ids=lambda value: value[:30].replace("\0", "nul"),
)
def test_an_unusable_description_is_named(tmp_path: Path, text: str, expected: str) -> None:
    message = problems_of(tmp_path, text)
    assert message.startswith(f"{tmp_path / 'description.yaml'}: ")
    assert expected in message


def test_a_missing_description_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot be read \(No such file or directory\)"):
        load_description(tmp_path / "none.yaml")


def test_a_path_that_cannot_be_found_is_named_with_its_source(tmp_path: Path) -> None:
    description = loaded(tmp_path, f"{{tokenizer: t, sources: {{a: {{paths: ['{tmp_path}/*.txt']}}}}}}")
    with pytest.raises(InputError, match=r"^sources.a: .*/\*.txt: nothing matches this pattern"):
        find_source_inputs(description)


def test_a_file_in_two_sources_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text")
    text = f"{{tokenizer: t, sources: {{a: {{paths: [{path}]}}, b: {{paths: ['{tmp_path}/*.txt']}}}}}}"
    with pytest.raises(InputError, match=r"^sources.b: .*a.txt is in sources.a too; its documents would count double"):
        find_source_inputs(loaded(tmp_path, text))


pieces_of_yaml = st.sampled_from(
    [
        *(
            "tokenizer: t\n",
            "sources:\n",
            "  a: {paths: [x]}\n",
            "  a:\n",
            "    paths: [x]\n",
            "    weight: ",
            "1e-3\n",
        ),
        *("cleaning: ", "{}", "[", "]", "{", ": ", "- ", "&a ", "*a ", "<<: ", "!!python/object:os.system ", "null\n"),
        *(
            "\n",
            " ",
            "\t",
            "'",
            '"',
            "#",
            "? ",
            "|\n",
            "%YAML 9\n",
            "---\n",
            "\x85",
            "\u2028",
            "é",
            "9" * 5000,
            ".inf\n",
        ),
    ]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.lists(pieces_of_yaml, max_size=12).map("".join))
def test_any_text_is_a_description_or_refused_by_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "description.yaml"
    path.write_text(text, encoding="utf-8")
    try:
        assert load_description(path).sources
    except ConfigError as error:
        assert str(error).startswith(f"{path}: ")
