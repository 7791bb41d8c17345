"""A fine-tuned model → a directory that stock `transformers` loads with its head.

`config.json` with labels, `model.safetensors` under the head's official names, tokenizer, `finetuning.json` (task,
head, labels, tokens of a row), README.md. Of the heads only that for labelled words is not stock's: the official one
has a layer more, and comes along as `modeling_deberta_scale_tokens.py`.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deberta_scale.convert.finetuned_card import finetuned_card
from deberta_scale.convert.finetuned_source import (
    DESCRIPTION_FILE,
    FORMAT_VERSION,
    Description,
    FineTuned,
    check_weights,
)
from deberta_scale.convert.hub_config import CONFIG_FILE, hub_config
from deberta_scale.convert.model_card import CARD_FILE
from deberta_scale.convert.stored import SAFETENSORS_FILE, write_safetensors
from deberta_scale.convert.tokenizer_files import fitting_tokenizer, tokenizer_files
from deberta_scale.durable import published_directory, refuse_used
from deberta_scale.finetune.readers import Labels
from deberta_scale.finetune.tasks import Head, Task

TOKENS_MODELING_FILE = "modeling_deberta_scale_tokens.py"
TOKENS_NOTE = (
    "stock AutoModelForTokenClassification has no `proj` layer and gives other labels; load it with"
    f" trust_remote_code=True, which runs {TOKENS_MODELING_FILE} from the directory"
)


def description_of(task: Task, max_length: int, stride_tokens: int | None = None) -> Description:
    """As the rows of fine-tuning were made, see `finetune.features.features_of`."""
    return Description(task.name, task.head, label_words(task.labels), max_length, stride_tokens)


def label_words(labels: Labels) -> tuple[str, ...]:
    """Their names; those that are numbers go by the word that `datasets` has for them, where there is one."""
    words = {name: spelling for spelling, name in labels.aliases.items()}
    return tuple(words.get(name, name) if name.isdigit() else name for name in labels.names)


def export(model: FineTuned, destination: Path) -> tuple[str, ...]:
    """Write `destination`, whole or not at all; of the weights, one tensor at a time is in memory.

    Returns what the user should know, which README.md says too. Raises ValueError when `destination` is in use,
    ConversionError when stock `transformers` cannot express the model, when weights, tokenizer, labels and config do
    not belong together, or when a package is not installed; TokenizerError for an unusable tokenizer.
    """
    refuse_used(destination)
    config = _hub_config(model)
    check_weights(model.config, model.weights, model.description, "the fine-tuned model")
    tokenizer = fitting_tokenizer(model.tokenizer, model.config)
    files = tokenizer_files(tokenizer, model.config.max_position_embeddings)
    notes = (TOKENS_NOTE,) if model.description.head == "tokens" else ()
    card = finetuned_card(model, destination.resolve().name, tokenizer.kind, notes)
    with published_directory(destination) as partial:
        (partial / CONFIG_FILE).write_text(_json(config), encoding="utf-8")
        write_safetensors(partial / SAFETENSORS_FILE, model.weights)
        for name, content in files.items():
            (partial / name).write_bytes(content)
        if "auto_map" in config:
            shutil.copyfile(Path(__file__).with_name(TOKENS_MODELING_FILE), partial / TOKENS_MODELING_FILE)
        described = {"format_version": FORMAT_VERSION, **asdict(model.description)}
        (partial / DESCRIPTION_FILE).write_text(_json(described), encoding="utf-8")
        (partial / CARD_FILE).write_text(card, encoding="utf-8")
    return notes


def _json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


_ARCHITECTURES: Mapping[Head, str] = {
    "classification": "DebertaV2ForSequenceClassification",
    "regression": "DebertaV2ForSequenceClassification",
    "choice": "DebertaV2ForMultipleChoice",
    "tokens": "DebertaScaleForTokenClassification",
    "span": "DebertaV2ForQuestionAnswering",
}


def _hub_config(model: FineTuned) -> dict[str, Any]:
    """`config.json` with the head: its dropout is ours, and its labels are those of the task."""
    head, labels = model.description.head, model.description.labels
    config = hub_config(model.config) | {
        "architectures": [_ARCHITECTURES[head]],
        "pooler_dropout": model.config.hidden_dropout_prob,
        "cls_dropout": model.head_dropout,
    }
    if head == "regression":
        return config | {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "problem_type": "regression"}
    if head in ("classification", "tokens"):
        config["id2label"] = {str(number): name for number, name in enumerate(labels)}
        config["label2id"] = {name: number for number, name in enumerate(labels)}
    if head == "classification":
        config["problem_type"] = "single_label_classification"
    if head == "tokens":
        module = TOKENS_MODELING_FILE.removesuffix(".py")
        config["auto_map"] = {"AutoModelForTokenClassification": f"{module}.{_ARCHITECTURES[head]}"}
    return config
