"""Rows as training sees them in its first epoch: packed, with [CLS] and [SEP], masked.

Made by what `deberta_scale.data.loader` makes its own by, which needs torch itself; a test holds the two together.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.token_sample import spread
from deberta_scale.config import Config, DataConfig
from deberta_scale.data.assembly import Output, assemble, new_output
from deberta_scale.data.masking import Masker, new_work
from deberta_scale.data.sources import Sources, seed_of
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


def masked_rows(sources: Sources, settings: RowSettings, num_rows: int) -> dict[str, Any]:
    """Up to `num_rows` rows, spread over all, packed and masked by the settings, by which `sources` was opened.

    Each has the pieces that the model sees, padding left out, and under `predicted` the places whose true piece it must
    tell, with that piece and the name of what was done.
    """
    data, rows = settings.data, sources.all[0].rows
    shown = spread(len(rows), num_rows)
    output = _assembled(sources, settings, np.array(shown))
    ends = np.cumsum(output.predictions)
    return {
        "row_length": data.sequence_length,
        "rows": len(rows),
        "padding_share": rows.padding_share(data.sequence_length),
        "packing": data.packing,
        "masking": data.masking.model_dump(mode="json"),
        "told_by": settings.told_by,
        "seed": settings.seed,
        "epoch": EPOCH,
        "examples": [
            {"row": row, **_example(output, place, int(ends[place]), sources.tokenizer)}
            for place, row in enumerate(shown)
        ],
    }


def _assembled(sources: Sources, settings: RowSettings, rows: np.ndarray) -> Output:
    row_length = settings.data.sequence_length
    output = new_output(len(rows), row_length)
    masking = Masker(settings.data.masking, sources.tokenizer).tables
    seeds, epochs = np.full(len(rows), settings.seed), np.full(len(rows), EPOCH)
    # In batches of one row, so that flat places are those in the row.
    assemble(sources.stream(), masking, new_work(row_length), rows, seeds, epochs, rows, 1, output)
    return output


def _example(output: Output, row: int, end: int, tokenizer: Tokenizer) -> dict[str, Any]:
    """`end`: of the row's predictions among all."""
    shown, used = output.shown[row], int(output.used[row])
    of_row = slice(end - int(output.predictions[row]), end)
    places, true_ids = (column[of_row].tolist() for column in (output.predicted_places, output.predicted_ids))
    predicted = []
    for place, true in zip(places, true_ids, strict=True):
        seen = int(shown[place])
        done = "mask" if seen == tokenizer.mask_id else "kept" if seen == true else "random"
        predicted.append({"place": place, "piece": tokenizer.piece(true), "shown_as": done})
    pieces = [tokenizer.piece(token) for token in shown[:used].tolist()]
    return {"pieces": pieces, "padding": len(shown) - used, "predicted": predicted}


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
