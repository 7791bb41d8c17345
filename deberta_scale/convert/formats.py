"""Whatever lies at a path → `Source`: the format is recognised by the files that are there.

A run or one of its checkpoints, or a finished run of fine-tuning; a deberta-scale directory; a Hugging Face directory
(`model_type` deberta or deberta-v2); a directory or single file of the official code, from its first release to V3.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from deberta_scale.convert import native
from deberta_scale.convert.consolidate import open_checkpoint, open_run
from deberta_scale.convert.finetuned_source import is_finetuned
from deberta_scale.convert.hub_config import CONFIG_FILE, model_config, read_json
from deberta_scale.convert.names import by_official_name, is_generator_with_discriminator, stores_differences
from deberta_scale.convert.official import CONFIG_FILE as OFFICIAL_CONFIG_FILE
from deberta_scale.convert.source import ConversionError, Source
from deberta_scale.convert.stored import Stored, find_weights, is_weights_file, open_stored
from deberta_scale.finetune.result import EXPORT_DIR

_GENERATOR = ".generator."
_GENERATOR_CONFIG_FILE = "generator_config.json"


def open_source(path: Path, report: Callable[[str], None] = lambda message: None) -> Source:
    """Recognise and open; the weights stay in their files. `report` hears of checkpoints of a run passed over.

    Raises ValueError (ConversionError, CheckpointError or ConfigError) naming the file that is missing, damaged or of
    another architecture.
    """
    if is_finetuned(path / EXPORT_DIR):  # a finished run of fine-tuning
        path = path / EXPORT_DIR
    if (path / "checkpoints").is_dir():
        source = open_run(path, report)
    elif (path / "manifest.json").is_file() or (path / "engine").is_dir():
        source = open_checkpoint(path)
    elif (path / native.SHAPE_FILE).is_file():
        source = native.open_directory(path)
    else:
        source = _open_foreign(path)
    source.check()
    return source


def _open_foreign(path: Path) -> Source:
    """Hugging Face or official, which differ in names inside at most."""
    if not path.exists():
        raise ConversionError(f"{path} does not exist")
    directory = path if path.is_dir() else path.parent
    weights_path = path if path.is_file() else find_weights(path)
    config_path = _config_file(directory, weights_path)
    if path.is_file() and not is_weights_file(path):
        raise ConversionError(f"{path}: not a file of weights; give a directory, a .safetensors or a .bin")
    keys = None if config_path is None else read_json(config_path)
    if config_path is not None and keys is not None and "model_type" in keys:
        model_config(keys, config_path)  # another architecture is told before its weights are looked into
    if weights_path is None and config_path is not None:
        raise ConversionError(
            f"{config_path} has no weights beside it: no model.safetensors, pytorch_model.bin, index of shards, or"
            " pytorch.model-NNNNNN.bin"
        )
    if weights_path is None:
        raise ConversionError(
            f"{path} is no run directory (no checkpoints/ in it), no checkpoint (no manifest.json), no deberta-scale"
            f" directory (no {native.SHAPE_FILE}), and holds neither {CONFIG_FILE} nor {OFFICIAL_CONFIG_FILE}"
        )
    stored = open_stored(weights_path)
    if stored.config is not None:
        keys, config_path = stored.config, weights_path
    if keys is None or config_path is None:
        raise ConversionError(
            f"{weights_path}: neither {OFFICIAL_CONFIG_FILE} nor {CONFIG_FILE} beside it tells the shape of the model"
        )
    config = model_config(_of_pair(keys, stored), config_path)
    weights, notes = by_official_name(stored, config, _generator(weights_path, stored))
    tokenizer, tokenizer_notes = native.tokenizer_directory(directory)
    return Source(
        path=path,
        kind="Hugging Face directory" if keys.get("model_type") and path.is_dir() else "official checkpoint",
        config=config,
        weights=weights,
        tokenizer=tokenizer,
        notes=(*_precision(stored), *notes, *tokenizer_notes),
        facts={"weights_file": weights_path.name},
    )


def _config_file(directory: Path, weights_path: Path | None) -> Path | None:
    names = [OFFICIAL_CONFIG_FILE, CONFIG_FILE]
    if weights_path is not None and _GENERATOR in weights_path.name:
        names.insert(0, _GENERATOR_CONFIG_FILE)
    return next((directory / name for name in names if (directory / name).is_file()), None)


def _of_pair(keys: dict[str, Any], stored: Stored) -> dict[str, Any]:
    """Official V3 training keeps one config for generator and discriminator; the one that the weights are of."""
    if not isinstance(keys.get("discriminator"), dict):
        return keys
    finds_replaced = any(name.startswith("mask_predictions.") for name in stored.shapes)
    part = "discriminator" if finds_replaced or is_generator_with_discriminator(stored) else "generator"
    of_part: dict[str, Any] = keys.get(part, keys)
    return of_part


def _generator(weights_path: Path, stored: Stored) -> Stored | None:
    """The V3 generator beside a discriminator that cannot be had without it."""
    if not stores_differences(stored) or is_generator_with_discriminator(stored):
        return None
    beside = weights_path.with_name(weights_path.stem + _GENERATOR + weights_path.suffix.removeprefix("."))
    return open_stored(beside) if beside.is_file() else None


def _precision(stored: Stored) -> list[str]:
    kinds = sorted(set(stored.dtypes.values()) & {"float16", "bfloat16", "float64"})
    return [f"stored as {' and '.join(kinds)}, read as float32"] if kinds else []
