"""The sides of `launch/bench.py step`: models of the same shape, ours and others', that do the same work.

All get the same token ids and are trained with the sum of squares of their output (encoders), or with masked language
modelling (whole steps). What only one side needs is imported inside it.
"""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from bench_sides import OURS, Step

from deberta_scale.batch import MaskedBatch
from deberta_scale.config import ModelConfig
from deberta_scale.convert.hub_config import hub_config

VOCABULARY = 128_100
MASKED = 0.15


@dataclass(frozen=True)
class Work:
    """What a step is made of."""

    rows: int
    length: int
    layers: int
    dtype: torch.dtype
    dropout: float
    whole: bool
    """The step of pretraining, with decoder, head and loss; otherwise the encoder alone."""

    @property
    def tokens(self) -> int:
        return self.rows * self.length


def _settings(work: Work) -> dict[str, Any]:
    """Width of the base models."""
    return {
        "vocab_size": VOCABULARY if work.whole else 1000,
        "hidden_size": 768,
        "num_hidden_layers": work.layers,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "max_position_embeddings": max(512, work.length),
        "hidden_dropout_prob": work.dropout,
        "attention_probs_dropout_prob": work.dropout,
    }


def _ids(work: Work) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(5, 1000, (work.rows, work.length), generator=generator)


def _masked_places(work: Work) -> torch.Tensor:
    """[P], ascending: the same number in each row."""
    generator = torch.Generator().manual_seed(2)
    per_row = int(MASKED * work.length)
    places = [torch.randperm(work.length, generator=generator)[:per_row].sort().values for _ in range(work.rows)]
    return torch.cat([row * work.length + chosen for row, chosen in enumerate(places)])


def _step_of(model: torch.nn.Module, loss: Callable[[], torch.Tensor]) -> Step:
    def step() -> None:
        model.zero_grad(set_to_none=True)
        loss().backward()

    return step


def ours(work: Work) -> Step:
    from deberta_scale.model.pretraining import PretrainingModel

    torch.manual_seed(0)
    model = PretrainingModel(ModelConfig(**_settings(work))).to(work.dtype).train()
    ids, ones = _ids(work), torch.ones(work.rows, work.length, dtype=torch.long)
    positions = torch.arange(work.length).expand(work.rows, -1).contiguous()
    if work.whole:
        places = _masked_places(work)
        batch = MaskedBatch(ids, ones, positions, places, ids.flatten()[places], int(MASKED * work.length))
        return _step_of(model, lambda: model(batch)[0] / len(places))
    deberta = model.deberta

    def loss() -> torch.Tensor:
        hidden: torch.Tensor = deberta(ids, ones, positions).hidden
        return hidden.float().square().mean()

    return _step_of(model, loss)


def _transformers(work: Work, kind: str, settings: dict[str, Any]) -> Step:
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**settings)
    name = f"{kind}ForMaskedLM" if work.whole else f"{kind}Model"
    model = getattr(transformers, name)(config).to(work.dtype).train()
    ids = _ids(work)
    if work.whole:
        labels = torch.full_like(ids, -100).flatten()
        places = _masked_places(work)
        labels[places] = ids.flatten()[places]
        targets = labels.view_as(ids)
        return _step_of(model, lambda: model(input_ids=ids, labels=targets).loss)
    return _step_of(model, lambda: model(input_ids=ids).last_hidden_state.float().square().mean())


def _deberta_settings(work: Work) -> dict[str, Any]:
    """As a config.json has them."""
    settings = hub_config(ModelConfig(**_settings(work)))
    for key in ("architectures", "auto_map", "model_type"):
        settings.pop(key, None)
    return settings


def deberta_of_transformers(work: Work) -> Step:
    return _transformers(work, "DebertaV2", _deberta_settings(work))


def bert_of_transformers(work: Work) -> Step:
    """Without relative positions."""
    return _transformers(work, "Bert", _settings(work) | {"attn_implementation": "sdpa"})


def modernbert_of_transformers(work: Work) -> Step:
    """Every third layer looks everywhere, the others nearby; gated feed-forward of 1,152."""
    settings = {key: value for key, value in _settings(work).items() if not key.endswith("dropout_prob")}
    dropouts = dict.fromkeys(("embedding_dropout", "mlp_dropout", "attention_dropout"), work.dropout)
    more = {"intermediate_size": 1152, "attn_implementation": "sdpa", "reference_compile": False}
    ids = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    return _transformers(work, "ModernBert", settings | dropouts | more | ids)


OFFICIAL_ENCODER, OFFICIAL_WHOLE = "deberta", "apps.models.masked_language_model"
"""Modules of the official code."""


def _import_official(directory: Path, module: str) -> Any:
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
    return importlib.import_module(f"DeBERTa.{module}")


def official_code(directory: Path, work: Work) -> Step:
    """Of a checkout; whole steps have its mask decoder."""
    shape = _import_official(directory, OFFICIAL_ENCODER).ModelConfig.from_dict(_deberta_settings(work))
    torch.manual_seed(0)
    ids, ones = _ids(work), torch.ones(work.rows, work.length, dtype=torch.long)
    if work.whole:
        labels, places = torch.zeros_like(ids).flatten(), _masked_places(work)
        labels[places] = ids.flatten()[places]
        targets = labels.view_as(ids)
        module = _import_official(directory, OFFICIAL_WHOLE)
        model = module.MaskedLanguageModel(shape).to(work.dtype).train()
        return _step_of(model, lambda: model(ids, ones, targets)["loss"].mean())
    model = _import_official(directory, OFFICIAL_ENCODER).DeBERTa(shape).to(work.dtype).train()
    return _step_of(model, lambda: model(ids, ones)["hidden_states"][-1].float().square().mean())


SIDES: dict[str, Callable[[Work], Step]] = {
    OURS: ours,
    "DeBERTa of transformers": deberta_of_transformers,
    "BERT of transformers, SDPA": bert_of_transformers,
    "ModernBERT of transformers, SDPA": modernbert_of_transformers,
}


def sides(official: Path | None, whole: bool) -> dict[str, Callable[[Work], Step]]:
    """SIDES, and the official code where a checkout of it is given. Raises ValueError when that cannot be imported."""
    if official is None:
        return SIDES
    if not (official / "DeBERTa" / "deberta").is_dir():
        raise ValueError(
            f"--official {official}: no checkout of microsoft/DeBERTa, it has no directory DeBERTa/deberta"
        )
    try:
        _import_official(official, OFFICIAL_WHOLE if whole else OFFICIAL_ENCODER)
    except ImportError as error:
        raise ValueError(f"--official {official}: cannot be imported, {error}") from error
    return {**SIDES, "DeBERTa, official code": partial(official_code, official)}
