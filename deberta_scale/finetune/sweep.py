"""A sweep: one config with several values for some of its keys, and a table of what each combination found.

Runs that differ in nothing but the seed are one row of the table.
"""

import itertools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deberta_scale.config import ConfigError
from deberta_scale.durable import write_durably
from deberta_scale.finetune.result import EXPORT_DIR, Result

SEED = "seed"
TABLE_FILE, FACTS_FILE = "sweep.md", "sweep.json"


@dataclass(frozen=True)
class Variation:
    """One run of a sweep."""

    values: Mapping[str, str]
    """By dotted key, as they were given."""

    @property
    def name(self) -> str:
        """Of its directory: the last part of each key, and the value."""
        return "_".join(f"{key.rpartition('.')[2]}-{value.replace('/', '-')}" for key, value in self.values.items())

    @property
    def overrides(self) -> list[str]:
        """As on the command line."""
        return [f"{key}={value}" for key, value in self.values.items()]

    @property
    def without_seed(self) -> tuple[tuple[str, str], ...]:
        return tuple((key, value) for key, value in self.values.items() if key != SEED)


def variations(words: Sequence[str]) -> list[Variation]:
    """All combinations of `key=value,value,...` words, the last key changing fastest.

    Raises ConfigError for a word that is none, a key or a value given twice, or two runs of one name.
    """
    choices: dict[str, list[str]] = {}
    for word in words:
        key, equals, text = word.partition("=")
        values = text.split(",")
        if not equals or not key or not all(values):
            raise ConfigError(f"--sweep {word!r}: expected key=value,value, for instance seed=1,2,3")
        if key in choices or len(set(values)) < len(values):
            raise ConfigError(f"--sweep {word!r}: a key or a value is given twice")
        choices[key] = values
    found = [Variation(dict(zip(choices, chosen, strict=True))) for chosen in itertools.product(*choices.values())]
    if len({variation.name for variation in found}) < len(found):
        raise ConfigError(f"--sweep {' '.join(words)}: two of the runs would have one directory, {found[0].name}")
    return found


@dataclass(frozen=True)
class Row:
    """The runs that differ in their seed only."""

    settings: dict[str, str]
    metric: str
    values: list[float]
    """Of the metric, by seed."""
    means: dict[str, float]
    """Of all metrics."""
    unfinished: list[str]
    """Names of runs without a result yet, or whose training diverged."""

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else float("-inf")

    @property
    def spread(self) -> float | None:
        """Standard deviation between seeds; of one run none is known."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def rows_of(runs: Sequence[tuple[Variation, Result | None]]) -> list[Row]:
    """The best row first."""
    groups: dict[tuple[tuple[str, str], ...], list[tuple[Variation, Result | None]]] = {}
    for variation, result in runs:
        groups.setdefault(variation.without_seed, []).append((variation, result))
    return sorted((_row(dict(key), group) for key, group in groups.items()), key=lambda row: -row.mean)


def _row(settings: dict[str, str], group: Sequence[tuple[Variation, Result | None]]) -> Row:
    results = [result for _, result in group if result is not None]
    names = results[0].values if results else {}
    return Row(
        settings,
        results[0].metric if results else "",
        [result.values[result.metric] for result in results],
        {name: statistics.fmean(result.values[name] for result in results) for name in names},
        [variation.name for variation, result in group if result is None],
    )


def best_run(runs: Sequence[tuple[Variation, Result | None]]) -> Variation | None:
    """The one whose model is the best; None when no run has finished."""
    finished = [(variation, result) for variation, result in runs if result is not None]
    return max(finished, key=lambda run: run[1].values[run[1].metric])[0] if finished else None


def write_table(run_dir: Path, runs: Sequence[tuple[Variation, Result | None]]) -> str:
    """Write `sweep.md`, for people, and `sweep.json` into the directory of the sweep; returns the table."""
    rows, best = rows_of(runs), best_run(runs)
    model = None if best is None else str(run_dir / best.name / EXPORT_DIR)
    facts = {
        "rows": [
            {"settings": row.settings, "metric": row.metric, "mean": row.mean if row.values else None}
            | {"spread": row.spread, "values": row.values, "means": row.means, "unfinished": row.unfinished}
            for row in rows
        ],
        "best_model": model,
    }
    table = "\n".join([*_table(rows), *([f"\nbest model: {model}"] if model else [])])
    write_durably(run_dir / TABLE_FILE, table + "\n")
    write_durably(run_dir / FACTS_FILE, json.dumps(facts, indent=2) + "\n")
    return table


def _table(rows: Sequence[Row]) -> list[str]:
    metric = next((row.metric for row in rows if row.metric), "metric")
    others = sorted({name for row in rows for name in row.means} - {metric})
    head = ["settings", f"{metric}, mean ± spread", "runs", "lowest", "highest", *(f"{name}, mean" for name in others)]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        settings = ", ".join(f"{key} {value}" for key, value in row.settings.items()) or "all"
        spread = "" if row.spread is None else f" ± {row.spread:.4f}"
        numbers = [f"{row.mean:.4f}{spread}" if row.values else "-"]
        numbers += [f"{len(row.values)} of {len(row.values) + len(row.unfinished)}"]
        numbers += [f"{choose(row.values):.4f}" if row.values else "-" for choose in (min, max)]
        numbers += [f"{row.means[name]:.4f}" if name in row.means else "-" for name in others]
        lines.append([settings, *numbers])
    return [f"| {' | '.join(line)} |" for line in lines]
