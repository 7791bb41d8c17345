"""What a data description says of weights reaches training without being typed again."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from data_prep.mixture_file import mixture_of, write_mixture
from data_prep.sources import DataDescription
from deberta_scale.config import Config, ConfigError
from deberta_scale.config_file import load


def description_of(**weights: float) -> DataDescription:
    sources = {name: {"paths": [f"text/{name}"], "weight": weight} for name, weight in weights.items()}
    return DataDescription.model_validate({"tokenizer": "tokenizer", "sources": sources})


def test_the_text_is_the_section_mixture_of_a_training_config(config_path: Path) -> None:
    text = mixture_of(description_of(web=3, books=0.5), Path("my shards"))
    tree: dict[str, Any] = yaml.safe_load(config_path.read_text())
    tree["data"] = {"mixture": yaml.safe_load(text), "sequence_length": 64}
    mixture = Config.model_validate(tree).data.mixture
    assert mixture is not None
    read = {name: (source.shards, source.weight) for name, source in mixture.sources.items()}
    assert read == {"web": (Path("my shards/web"), 3.0), "books": (Path("my shards/books"), 0.5)}


def test_a_source_of_weight_0_is_left_out_and_named() -> None:
    text = mixture_of(description_of(web=1, notes=0), Path("shards"))
    assert "# Left out, for their weight is 0: notes\n" in text and list(yaml.safe_load(text)["sources"]) == ["web"]
    assert "Left out" not in mixture_of(description_of(web=1), Path("shards"))


def test_the_file_is_named_in_place_of_the_section_and_changed_by_later_words(
    config_path: Path, tmp_path: Path
) -> None:
    path = write_mixture(description_of(web=3, books=1), tmp_path)
    phases = "data.mixture.phases=[{from_step: 4, weights: {web: 0, books: 1}}]"
    words = ["data.shards=null", f"data.mixture={path}", "data.mixture.sources.web.weight=2", phases]
    mixture = load(config_path, words).data.mixture
    assert mixture is not None
    assert mixture.weights_by_step() == [(0, {"web": 2.0, "books": 1.0}), (4, {"web": 0.0, "books": 1.0})]


def test_the_config_that_a_run_keeps_holds_the_mixture_itself(config_path: Path, tmp_path: Path) -> None:
    path = write_mixture(description_of(web=3, books=1), tmp_path)
    tree = yaml.safe_load(config_path.read_text())
    config_path.write_text(yaml.safe_dump(tree | {"data": {"mixture": str(path), "sequence_length": 64}}))
    config = load(config_path)
    assert config.data.mixture is not None and config.data.mixture.sources["web"].weight == 3
    path.unlink()
    config_path.write_text(config.to_yaml())
    assert load(config_path) == config


def test_writing_the_same_again_touches_nothing_and_another_weight_is_written(tmp_path: Path) -> None:
    path = write_mixture(description_of(web=1, books=1), tmp_path)
    before = path.stat().st_mtime_ns
    write_mixture(description_of(web=1, books=1), tmp_path)
    assert path.stat().st_mtime_ns == before
    write_mixture(description_of(web=1, books=7), tmp_path)
    assert yaml.safe_load(path.read_text())["sources"]["books"]["weight"] == 7
    assert [entry.name for entry in tmp_path.iterdir()] == ["mixture.yaml"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "data.mixture: .*mixture.yaml: cannot be read"),
        ("[1, 2]", "data.mixture: .*mixture.yaml: expected keys such as sources:"),
        ("{", "data.mixture: .*mixture.yaml: not valid YAML"),
        ("sources: {a: {shards: x, weight: 1}}", r"data.mixture.sources.a.max_epochs: required"),
    ],
)
def test_a_file_that_holds_no_mixture_is_named(
    config_path: Path, tmp_path: Path, content: str | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / "mixture.yaml").write_text(content)
    with pytest.raises(ConfigError, match=expected):
        load(config_path, ["data.shards=null", f"data.mixture={tmp_path / 'mixture.yaml'}"])
