"""Rows as training sees them in its first epoch: packed, with [CLS] and [SEP], masked.

A twin of `deberta_scale.data.loader`, which needs torch; a test holds the two together.
"""

from typing import Any

import numpy as np

from data_prep.token_sample import spread
from deberta_scale.config import MaskingConfig
from deberta_scale.data.masking import Masker
from deberta_scale.data.packing import Rows, pack
from deberta_scale.data.shards import ShardSet
from deberta_scale.data.tokenizer import Tokenizer

SEED, EPOCH = 1, 0
"""The seed that a run has when its config names none."""
PACKING = "best_fit"
ALTERED = {"mask": "[MASK]", "random": "another piece", "kept": "unchanged"}
"""What the model sees in the place of a predicted token, by the name in `predicted`."""


def masked_rows(shards: ShardSet, tokenizer: Tokenizer, row_length: int, num_rows: int) -> dict[str, Any]:
    """Up to `num_rows` rows of `row_length` places, spread over all, masked as the config does by default.

    Each has the pieces that the model sees, padding left out, and under `predicted` the places whose true piece it must
    tell, with that piece and the name of what was done.
    """
    rows = pack(shards, row_length, PACKING)
    masker = Masker(MaskingConfig(), tokenizer)
    return {
        "row_length": row_length,
        "rows": len(rows),
        "padding_share": rows.padding_share(row_length),
        "packing": PACKING,
        "seed": SEED,
        "epoch": EPOCH,
        "examples": [_example(shards, tokenizer, rows, masker, row, row_length) for row in spread(len(rows), num_rows)],
    }


def _example(
    shards: ShardSet, tokenizer: Tokenizer, rows: Rows, masker: Masker, row: int, row_length: int
) -> dict[str, Any]:
    tokens, used = tokens_of_row(shards, rows.pieces(row), row_length)
    shown, places = masker.mask(tokens, SEED, EPOCH, row)
    predicted = []
    for place in places.tolist():
        seen, true = int(shown[place]), int(tokens[place])
        done = "mask" if seen == tokenizer.mask_id else "kept" if seen == true else "random"
        predicted.append({"place": place, "piece": tokenizer.piece(true), "shown_as": done})
    pieces = [tokenizer.piece(token) for token in shown[:used].tolist()]
    return {"row": row, "pieces": pieces, "padding": row_length - used, "predicted": predicted}


def tokens_of_row(shards: ShardSet, pieces: list[tuple[int, int]], row_length: int) -> tuple[np.ndarray, int]:
    """(tokens [row_length] int32 with special ones and padding, places that are not padding) of a row's pieces."""
    cls, sep = (np.array([token], dtype=np.int32) for token in (Tokenizer.cls_id, Tokenizer.sep_id))
    used = np.concatenate([part for start, length in pieces for part in (cls, shards.read(start, length), sep)])
    padding = np.full(row_length - len(used), Tokenizer.pad_id, dtype=np.int32)
    return np.concatenate([used, padding]).astype(np.int32), len(used)


def lines_of_rows(masked: dict[str, Any], places_shown: int) -> list[str]:
    """For a terminal: the first places of each row, the predicted ones in brackets."""
    lines = [
        f"  {masked['rows']:,} rows of {masked['row_length']:,} places, {masked['padding_share']:.2%} padding. As the"
        f" model sees them (seed {masked['seed']}, epoch {masked['epoch']});",
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
