"""Rows as training sees them in its first epoch: packed, with [CLS] and [SEP], masked.

A twin of `deberta_scale.data.loader`, which needs torch; a test holds the two together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.token_sample import spread
from deberta_scale.config import Config, DataConfig
from deberta_scale.data.masking import Masker
from deberta_scale.data.packing import Rows, pack
from deberta_scale.data.shards import ShardSet
from deberta_scale.data.sources import seed_of
from deberta_scale.data.tokenizer import Tokenizer

EPOCH = 0
ALTERED = {"mask": "[MASK]", "random": "another piece", "kept": "unchanged"}
"""What the model sees in the place of a predicted token, by the name in `predicted`."""


@dataclass(frozen=True)
class RowSettings:
    """How a run makes rows of one directory of shards."""

    data: DataConfig
    seed: int
    """Of the source's order and masks."""
    told_by: str
    """For people: the config that says so."""


def default_settings(directory: Path) -> RowSettings:
    """Of a config that says nothing but where the shards are."""
    return RowSettings(DataConfig(shards=directory), Config.model_fields["seed"].default, "the default config")


def settings_of(config: Config, path: Path, directory: Path) -> RowSettings:
    """As the run of `config`, read from `path`, makes rows of `directory`. Raises ValueError when it mixes others."""
    if config.data.mixture is None:
        return RowSettings(config.data, config.seed, str(path))
    shards = {name: source.shards for name, source in config.data.mixture.sources.items()}
    for name, of_source in shards.items():
        if of_source.resolve() == directory.resolve():
            return RowSettings(config.data, seed_of(name, config.seed), str(path))
    raise ValueError(f"--config {path} mixes {', '.join(map(str, shards.values()))}; {directory} is none of them")


def masked_rows(shards: ShardSet, tokenizer: Tokenizer, settings: RowSettings, num_rows: int) -> dict[str, Any]:
    """Up to `num_rows` rows, spread over all, packed and masked by the settings.

    Each has the pieces that the model sees, padding left out, and under `predicted` the places whose true piece it must
    tell, with that piece and the name of what was done.
    """
    data = settings.data
    rows = pack(shards, data.sequence_length, data.packing)
    masker = Masker(data.masking, tokenizer)
    return {
        "row_length": data.sequence_length,
        "rows": len(rows),
        "padding_share": rows.padding_share(data.sequence_length),
        "packing": data.packing,
        "masking": data.masking.model_dump(mode="json"),
        "told_by": settings.told_by,
        "seed": settings.seed,
        "epoch": EPOCH,
        "examples": [_example(shards, tokenizer, rows, masker, row, settings) for row in spread(len(rows), num_rows)],
    }


def _example(
    shards: ShardSet, tokenizer: Tokenizer, rows: Rows, masker: Masker, row: int, settings: RowSettings
) -> dict[str, Any]:
    row_length = settings.data.sequence_length
    tokens, used = tokens_of_row(shards, rows, row, row_length)
    shown, places = masker.mask(tokens, settings.seed, EPOCH, row)
    predicted = []
    for place in places.tolist():
        seen, true = int(shown[place]), int(tokens[place])
        done = "mask" if seen == tokenizer.mask_id else "kept" if seen == true else "random"
        predicted.append({"place": place, "piece": tokenizer.piece(true), "shown_as": done})
    pieces = [tokenizer.piece(token) for token in shown[:used].tolist()]
    return {"row": row, "pieces": pieces, "padding": row_length - used, "predicted": predicted}


def tokens_of_row(shards: ShardSet, rows: Rows, row: int, row_length: int) -> tuple[np.ndarray, int]:
    """(tokens [row_length] int32 with special ones and padding, places that are not padding) of a row."""
    cls, sep = (np.array([token], dtype=np.int32) for token in (Tokenizer.cls_id, Tokenizer.sep_id))
    pieces = [shards.read(start, length) for start, length in rows.pieces(row)]
    parts = [part for piece in pieces for part in (cls, piece, sep)]
    if rows.one_segment:
        parts = [cls, *(part for piece in pieces for part in (piece, sep))]
    used = np.concatenate(parts)
    padding = np.full(row_length - len(used), Tokenizer.pad_id, dtype=np.int32)
    return np.concatenate([used, padding]).astype(np.int32), len(used)


def lines_of_rows(masked: dict[str, Any], places_shown: int) -> list[str]:
    """For a terminal: the first places of each row, the predicted ones in brackets."""
    lines = [
        f"  {masked['rows']:,} rows of {masked['row_length']:,} places, {masked['padding_share']:.2%} padding. As the"
        f" model sees them ({masked['told_by']}, seed {masked['seed']}, epoch {masked['epoch']});",
        "  ⟦predicted⟧ is shown as [MASK], ⟦predicted→other⟧ as another piece, ⟦predicted=⟧ unchanged:",
    ]
    for example in masked["examples"]:
        pieces = list(example["pieces"])
        for predicted in example["predicted"]:
            place, true = predicted["place"], predicted["piece"]
            done = {"mask": "", "random": f"→{pieces[place]}", "kept": "="}[predicted["shown_as"]]
            pieces[place] = f"⟦{true}{done}⟧"
        more = " ..." if len(pieces) > places_shown else ""
        lines += [
            f"  row {example['row']:,}: {len(example['predicted'])} predicted, {example['padding']} padding",
            f"    {' '.join(pieces[:places_shown])}{more}",
        ]
    return lines
