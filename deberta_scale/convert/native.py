"""The deberta-scale directory: what a new run starts from, and tokenize_corpus.py cuts texts with.

`model.yaml` (the shape, every key), `model.safetensors` (fp32, the names of `PretrainingModel`), `tokenizer/`,
`source.json` (where it came from, and what was dropped or made up on the way).
"""

import json
from pathlib import Path
from typing import Any

import yaml

from deberta_scale.config import ConfigError, ModelConfig
from deberta_scale.config_file import read_tree, validate
from deberta_scale.convert.hub_config import RELATIVE_KEYS
from deberta_scale.convert.names import by_official_name
from deberta_scale.convert.source import ConversionError, Source
from deberta_scale.convert.stored import SAFETENSORS_FILE, open_stored, write_safetensors
from deberta_scale.convert.tokenizer_files import fitting_tokenizer
from deberta_scale.data.tokenizer import MODEL_FILE, Tokenizer, TokenizerError
from deberta_scale.durable import published_directory, refuse_used

SHAPE_FILE, SOURCE_FILE, TOKENIZER_DIRECTORY = "model.yaml", "source.json", "tokenizer"
_PIECES_FILES, _FAST_FILE = (MODEL_FILE, "vocab.json", "bpe_encoder.bin"), "tokenizer.json"
"""One of them is there when a tokenizer is. `tokenizer.json` alone is enough for V1 only."""
NO_TOKENIZER = "no tokenizer in it: text must be cut with the one that the model was trained with"


def export(source: Source, destination: Path) -> tuple[str, ...]:
    """Write `destination`, whole or not at all; of the weights, one tensor at a time is in memory.

    Returns what the user should know, the source's notes first. Raises ValueError when `destination` is in use,
    ConversionError when weights or tokenizer are not the config's, TokenizerError for a tokenizer that is damaged.
    """
    refuse_used(destination)
    source.check()
    tokenizer = tokenizer_files(source)
    with published_directory(destination) as partial:
        shape = source.config.model_dump(mode="json", exclude_none=True)
        if source.config.baseline:
            shape = {key: value for key, value in shape.items() if key not in RELATIVE_KEYS}
        (partial / SHAPE_FILE).write_text(yaml.safe_dump(shape, sort_keys=False), encoding="utf-8")
        write_safetensors(partial / SAFETENSORS_FILE, source.weights)
        if tokenizer:
            (partial / TOKENIZER_DIRECTORY).mkdir()
        for name, content in tokenizer.items():
            (partial / TOKENIZER_DIRECTORY / name).write_bytes(content)
        facts = {"path": source.path, "kind": source.kind, "notes": source.notes, "facts": source.facts}
        (partial / SOURCE_FILE).write_text(json.dumps(facts, indent=2, default=str) + "\n", encoding="utf-8")
    return source.notes if tokenizer else (*source.notes, NO_TOKENIZER)


def open_directory(directory: Path) -> Source:
    """What `export` wrote. Raises ConversionError naming the file that is missing, damaged or does not fit."""
    path = directory / SHAPE_FILE
    try:
        config = validate(ModelConfig, read_tree(path, ModelConfig), path)
    except ConfigError as error:
        raise ConversionError(str(error)) from None
    weights, notes = by_official_name(open_stored(directory / SAFETENSORS_FILE), config)
    tokenizer, tokenizer_notes = tokenizer_directory(directory / TOKENIZER_DIRECTORY)
    return Source(
        path=directory,
        kind="deberta-scale directory",
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        notes=(*notes, *tokenizer_notes),
        facts=_facts(directory / SOURCE_FILE),
    )


def _facts(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))["facts"]
    except FileNotFoundError:
        return {}  # known only where it came from; the model is whole without it
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{path}: not what launch/convert.py writes ({error!r}); copy or remove it") from None
    # What lies in that place now may be another run.
    return {key: value for key, value in facts.items() if key != "run_dir"} if isinstance(facts, dict) else {}


def tokenizer_directory(directory: Path) -> tuple[Path | None, tuple[str, ...]]:
    """The directory itself when a tokenizer is in it, else None; and a note about one that cannot be read."""
    if any((directory / name).is_file() for name in _PIECES_FILES):
        return directory, ()
    if not (directory / _FAST_FILE).is_file():
        return None, ()
    try:
        Tokenizer.load(directory)
    except TokenizerError as error:  # transformers alone can read it; the weights are none the worse
        return None, (f"tokenizer left out: {error}",)
    return directory, ()


def tokenizer_files(source: Source) -> dict[str, bytes]:
    """The tokenizer as data preparation takes it, by file name; empty when the source has none.

    Raises TokenizerError for one that cannot be read, ConversionError for another model's.
    """
    if source.tokenizer is None:
        return {}
    return fitting_tokenizer(source.tokenizer, source.config).files()
