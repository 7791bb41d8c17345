"""A Hugging Face directory of any architecture, read by `transformers` with its own tokenizer."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import nn

from deberta_scale.evaluation.labels import label_order
from deberta_scale.evaluation.models import best_device, without_padding
from deberta_scale.finetune.features import DEFAULT_STRIDE_TOKENS
from deberta_scale.finetune.features_spans import MAX_QUESTION_TOKENS
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.rows import Context, Features, Row, TooLong
from deberta_scale.finetune.tasks import Head, Task

_HEADS: Mapping[Head, str] = {
    "classification": "ForSequenceClassification",
    "regression": "ForSequenceClassification",
    "choice": "ForMultipleChoice",
    "tokens": "ForTokenClassification",
    "span": "ForQuestionAnswering",
}
"""As they end the names of classes of `transformers`."""


@dataclass(frozen=True)
class ForeignRow(Row):
    """A row of another tokenizer."""

    token_types: tuple[list[int], ...] = ()
    """For each sequence, where the model has them."""


class ForeignModel:
    """Loaded from local files, in fp32; code from the directory is never run."""

    def __init__(self, directory: Path, task: Task) -> None:
        self._task, self._directory = task, directory
        _quieten()
        config = _config(directory, task)
        self.kind = f"transformers, {config.architectures[0]}"
        outputs, self.notes = self._label_outputs(config)
        self._outputs = list(outputs) or None
        self._tokenizer = self._load_tokenizer()
        model = _load_model(directory, task)
        self.device = best_device()
        self._model = model.to(self.device).eval()
        self.num_parameters = sum(parameter.numel() for parameter in model.parameters())
        self._max_length = min(task.max_length, _most_tokens(model, self._tokenizer))

    def _label_outputs(self, config: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """None in particular where outputs have no names."""
        if self._task.head in ("choice", "span"):
            return (), ()
        names = [config.id2label[number] for number in range(config.num_labels)]
        if self._task.head == "regression":
            if len(names) != 1:
                raise ValueError(
                    f"{self._directory} has {len(names)} labels, {', '.join(map(repr, names))}; {self._task.name} needs"
                    " one output, a number"
                )
            return (), ()
        return label_order(self._task.labels, names, str(self._directory))

    def _load_tokenizer(self) -> Any:
        # Words that are given one by one have a space before them in a text.
        more = {"add_prefix_space": True} if self._task.head == "tokens" else {}
        with _told(self._directory, "its tokenizer"):
            tokenizer = transformers.AutoTokenizer.from_pretrained(
                str(self._directory), local_files_only=True, trust_remote_code=False, **more
            )
        if self._task.head in ("tokens", "span") and not tokenizer.is_fast:
            raise ValueError(f"{self._directory}: its tokenizer cannot tell where tokens stand; add its tokenizer.json")
        if tokenizer.pad_token_id is None:
            raise ValueError(f"{self._directory}: its tokenizer has no padding token; give it one (pad_token)")
        tokenizer.padding_side = tokenizer.truncation_side = "right"
        return tokenizer

    def features(self, examples: Sequence[Example]) -> Features:
        if self._task.head == "span":
            return self._span_rows(examples)
        return self._word_rows(examples) if self._task.head == "tokens" else self._text_rows(examples)

    def _text_rows(self, examples: Sequence[Example]) -> Features:
        too_long = TooLong("texts", self._max_length)
        rows: list[Row] = []
        for number, example in enumerate(examples):
            encoded = [self._encode(texts, too_long) for texts in example.choices or (example.texts,)]
            ids, types = zip(*encoded, strict=True)
            rows.append(_row(ids, types, number))
        return Features(rows, too_long.notes("their ends were left out"), num_cut=too_long.num_too_long)

    def _encode(self, texts: Sequence[str], too_long: TooLong) -> tuple[list[int], list[int]]:
        """Ids and token types, cut to the length of a row."""
        found = self._tokenizer(*texts, truncation="longest_first", max_length=self._max_length)
        may_be_cut = len(found.input_ids) == self._max_length
        too_long.count(len(self._tokenizer(*texts).input_ids if may_be_cut else found.input_ids))
        return found.input_ids, found.get("token_type_ids", [])

    def _word_rows(self, examples: Sequence[Example]) -> Features:
        """Each sentence has rows of its own; the first token of each word counts."""
        too_long = TooLong("sentences", self._max_length)
        rows: list[Row] = []
        for number, example in enumerate(examples):
            encoded = self._tokenizer(
                list(example.texts),
                is_split_into_words=True,
                truncation=True,
                max_length=self._max_length,
                return_overflowing_tokens=True,
            )
            too_long.count(sum(map(len, encoded.input_ids)))
            seen: set[int] = set()
            for part in encoded.encodings:
                words = []
                for place, word in enumerate(part.word_ids):
                    if word is not None and word not in seen:
                        seen.add(word)
                        words.append((place, number, word))
                rows.append(_row([part.ids], [part.type_ids], number, words=tuple(words)))
        return Features(rows, too_long.notes("they go on in the next row"))

    def _span_rows(self, examples: Sequence[Example]) -> Features:
        """As many rows as a context needs; two that follow share DEFAULT_STRIDE_TOKENS, or half a row where that is
        less."""
        tokenizer = self._tokenizer
        question_tokens = min(MAX_QUESTION_TOKENS, self._max_length // 4)
        questions = TooLong("questions", question_tokens)
        rows: list[Row] = []
        for number, example in enumerate(examples):
            question, num_tokens = self._cut(example.texts[0], question_tokens)
            questions.count(num_tokens)
            encoded = tokenizer(
                question,
                example.texts[1],
                truncation="only_second",
                max_length=self._max_length,
                stride=min(DEFAULT_STRIDE_TOKENS, (self._max_length - question_tokens) // 2),
                return_overflowing_tokens=True,
                return_offsets_mapping=True,
            )
            for part in encoded.encodings:
                if part.ids[0] != tokenizer.cls_token_id:
                    raise ValueError(
                        f"{self._directory}: its tokenizer does not begin rows with a class token, where the score for"
                        " no answer is read; give a model of another architecture"
                    )
                context = _context(part, example.texts[1])
                rows.append(_row([part.ids], [part.type_ids], number, context=context))
        return Features(rows, questions.notes("their ends were left out"), num_cut=questions.num_too_long)

    def _cut(self, text: str, most: int) -> tuple[str, int]:
        """The first `most` tokens of a text, and how many it has."""
        offsets = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True).offset_mapping
        return (text if len(offsets) <= most else text[: offsets[most - 1][1]]), len(offsets)

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> list[np.ndarray]:
        num_choices = len(rows[0].sequences)
        inputs: dict[str, Any] = {"input_ids": [list(map(int, ids)) for row in rows for ids in row.sequences]}
        if "token_type_ids" in self._tokenizer.model_input_names:
            inputs["token_type_ids"] = [types for row in rows for types in _of_this_tokenizer(row).token_types]
        padded = self._tokenizer.pad(inputs, return_tensors="pt").to(self.device)
        if self._task.head == "choice":
            padded = {name: tensor.unflatten(0, (-1, num_choices)) for name, tensor in padded.items()}
        found = self._model(**padded)
        if self._task.head == "span":
            logits = torch.stack([found.start_logits, found.end_logits], dim=1)
        else:
            logits = found.logits
        return without_padding(self._task, logits, rows, self._outputs)


def _row(ids: Sequence[list[int]], types: Sequence[list[int]], number: int, **more: Any) -> ForeignRow:
    """Of one sequence, or one for each choice."""
    sequences = tuple(np.array(sequence, dtype=np.int32) for sequence in ids)
    return ForeignRow(sequences, None, number, token_types=tuple(types), **more)


def _of_this_tokenizer(row: Row) -> ForeignRow:
    assert isinstance(row, ForeignRow), "made by features()"
    return row


def _context(part: Any, text: str) -> Context:
    """The tokens of the second text, their offsets without white space at either end."""
    places = [place for place, sequence in enumerate(part.sequence_ids) if sequence == 1]
    offsets = []
    for begin, end in (part.offsets[place] for place in places):
        content = text[begin:end]
        first = begin + len(content) - len(content.lstrip())
        offsets.append((first, max(first, begin + len(content.rstrip()))))
    return Context(places[0] if places else 0, np.array(offsets, dtype=np.int64).reshape(-1, 2))


def _quieten() -> None:
    """What `transformers` would print of loading is checked here."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@contextlib.contextmanager
def _told(directory: Path, what: str) -> Iterator[None]:
    """Whatever the library raises for a directory that it cannot read, as one line."""
    try:
        yield
    except Exception as error:  # it raises whatever the class at hand does
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise ValueError(
            f"{directory}: transformers cannot load {what} from local files without running code from it"
            f" ({reason[:200]})"
        ) from None


def _config(directory: Path, task: Task) -> Any:
    """Raises ValueError for a directory without a head, or with one of another kind."""
    if not (directory / "config.json").is_file():
        raise ValueError(f"{directory}: has no config.json; give the directory of a fine-tuned model, exported")
    with _told(directory, "its config"):
        config = transformers.AutoConfig.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    wanted, found = _HEADS[task.head], config.architectures or ["no class"]
    if f"AutoModel{wanted}" in (getattr(config, "auto_map", None) or {}):
        raise ValueError(
            f"{directory}: its head is code in a file beside the weights, and code from a directory is not run"
        )
    if not any(wanted in name for name in found):
        raise ValueError(
            f"{directory}: holds {', '.join(found)}; {task.name} needs a model that was fine-tuned with the head of"
            f" AutoModel{wanted}"
        )
    return config


def _load_model(directory: Path, task: Task) -> Any:
    """Raises ValueError when a weight is missing, which `transformers` would draw at random."""
    with _told(directory, "its model"):
        automatic = getattr(transformers, f"AutoModel{_HEADS[task.head]}")
        model, loading = automatic.from_pretrained(
            str(directory),
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    if missing := sorted(loading["missing_keys"]):
        raise ValueError(
            f"{directory}: has no weights for {', '.join(missing[:3])}, so its head was not fine-tuned; give a model"
            f" that was fine-tuned for {task.name}"
        )
    return model


def _most_tokens(model: nn.Module, tokenizer: Any) -> int:
    """What table of positions, tokenizer and config allow, of each where it says something."""
    tables = [
        module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
        for name, module in model.named_modules()
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding)
    ]
    said = getattr(model.config, "max_position_embeddings", None)
    return min([tokenizer.model_max_length, *tables, *([said] if said and not tables else [])])
