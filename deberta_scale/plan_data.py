"""How often a run will read its text, from the manifests of the shards. Imports no torch.

Rows also hold special tokens and padding, which manifests do not tell: epochs are upper bounds. The run itself counts
rows (data/loader.py).
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deberta_scale.config import Config, ConfigError


@dataclass(frozen=True)
class SourcePlan:
    """What the run reads of one directory of shards."""

    name: str
    """In the mixture; empty for the only one."""
    shards: Path
    share: float
    """Of the samples of the whole run."""
    tokens: int | None
    """Of its training split; None when the directory does not exist yet."""
    epochs: float | None
    """At most."""
    max_epochs: float | None
    """None for the only one, which may be read without end."""

    @property
    def may_be_read_too_often(self) -> bool:
        return self.epochs is not None and self.max_epochs is not None and self.epochs > self.max_epochs


def plan_sources(config: Config) -> tuple[SourcePlan, ...]:
    """In the order of the config. Raises ConfigError for a directory that exists and cannot be trained on."""
    mixture, steps = config.data.mixture, config.train.steps
    shares = {"": 1.0} if mixture is None else mixture.share_of_run(steps)
    plans = []
    for (name, share), (key, directory) in zip(shares.items(), config.data.directories.items(), strict=True):
        tokens = _tokens_of(key, directory, config.model.vocab_size) if directory.exists() else None
        epochs = None if tokens is None else share * config.tokens_per_step * steps / tokens
        max_epochs = None if mixture is None else mixture.sources[name].max_epochs
        plans.append(SourcePlan(name, directory, share, tokens, epochs, max_epochs))
    return tuple(plans)


def _tokens_of(key: str, directory: Path, model_vocab_size: int) -> int:
    path = directory / "train" / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        tokens, vocabulary_size = int(manifest["tokens"]), int(manifest["vocabulary_size"])
    except OSError as error:
        raise ConfigError(
            f"{key} {directory}: {path} cannot be read ({error.strerror}); give a directory written by"
            " data_prep/tokenize_corpus.py"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a manifest of data_prep/tokenize_corpus.py ({error!r})") from None
    if model_vocab_size < vocabulary_size:
        raise ConfigError(
            f"model.vocab_size {model_vocab_size} is too small for the tokens of {directory}; give {vocabulary_size} or"
            " more"
        )
    if tokens < 1:
        raise ConfigError(f"{path}: the training split holds no tokens; give more text to data_prep/tokenize_corpus.py")
    return tokens
