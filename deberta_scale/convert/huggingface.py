"""Weights, model config and tokenizer → a directory that stock `transformers` loads, and that fills masks.

Stock `DebertaV2Model` gets the whole encoder. The enhanced mask decoder, which `transformers` does not have, comes
along as `modeling_deberta_scale.py` and is used where code from the directory is trusted;
`deberta_scale.convert.fill_mask` has it too. Position table and `lm_predictions.*` keep their official names.
"""

import json
import shutil
from pathlib import Path
from typing import Any

from deberta_scale.convert.hub_config import CONFIG_FILE, hub_config
from deberta_scale.convert.model_card import CARD_FILE, model_card
from deberta_scale.convert.source import Source
from deberta_scale.convert.stored import SAFETENSORS_FILE, write_safetensors
from deberta_scale.convert.tokenizer_files import fitting_tokenizer, tokenizer_files
from deberta_scale.data.tokenizer import Tokenizer
from deberta_scale.durable import published_directory, refuse_used

MODELING_FILE = "modeling_deberta_scale.py"
_AUTO_MAP = {"AutoModelForMaskedLM": "modeling_deberta_scale.DebertaScaleForMaskedLM"}
"""Of the automatic classes only this one takes code from the directory; the others are stock."""


def export(source: Source, destination: Path) -> tuple[str, ...]:
    """Write `destination`: config.json, model.safetensors (fp32), tokenizer, modeling_deberta_scale.py, README.md.

    The directory appears whole or not at all; of the weights, one tensor at a time is in memory. A source without
    tokenizer, or without parts of the mask decoder, is exported without the files for it.

    Returns what the user should know, the source's notes first, for the caller to print; README.md has it too. Raises
    ValueError when `destination` is in use, ConversionError when stock `transformers` cannot express the model, when
    weights or tokenizer are not the model's, or when a package is not installed; TokenizerError for an unusable
    tokenizer.
    """
    refuse_used(destination)
    config = _config(source)
    tokenizer = load_tokenizer(source)
    cut_as_trained = {} if tokenizer is None else tokenizer_files(tokenizer, source.config.max_position_embeddings)
    source.check()
    notes = (*source.notes, *_notes(source))
    with published_directory(destination) as partial:
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_safetensors(partial / SAFETENSORS_FILE, source.weights)
        for name, content in cut_as_trained.items():
            (partial / name).write_bytes(content)
        if "auto_map" in config:
            shutil.copyfile(Path(__file__).with_name(MODELING_FILE), partial / MODELING_FILE)
        card = model_card(source, None if tokenizer is None else tokenizer.kind, notes)
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
    return notes


def _config(source: Source) -> dict[str, Any]:
    config = hub_config(source.config)
    if source.missing():
        return config | {"architectures": ["DebertaV2Model"]}  # and no class for masks: it would have a random head
    return config | {"auto_map": _AUTO_MAP}


def load_tokenizer(source: Source) -> Tokenizer | None:
    """None for a source without. Raises TokenizerError for one that cannot be used, ConversionError for another
    model's."""
    if source.tokenizer is None:
        return None
    return fitting_tokenizer(source.tokenizer, source.config)


def _notes(source: Source) -> list[str]:
    notes = []
    if missing := source.missing():
        notes.append(
            f"cannot fill masks: {source.path.name} lacks {', '.join(missing)}, parts of the mask decoder; exported as"
            " an encoder, to be fine-tuned"
        )
    if source.tokenizer is None:
        notes.append(
            f"no tokenizer: {source.path.name} has none; copy the files of the one that the model was trained with"
            " into this directory before a text is given to it"
        )
    return notes
