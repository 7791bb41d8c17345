"""A fine-tuned model in a directory, ours or one of `transformers` → the logits of a task's examples."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from deberta_scale.convert.finetuned_source import is_finetuned, load_head, open_finetuned
from deberta_scale.convert.tokenizer_files import fitting_tokenizer
from deberta_scale.evaluation.labels import label_order
from deberta_scale.finetune.features import batch_of, features_of
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.rows import Features, Row
from deberta_scale.finetune.tasks import Task


class Model(Protocol):
    """What is evaluated."""

    kind: str
    """For people."""
    notes: tuple[str, ...]
    """What the user should know of how it is read."""
    num_parameters: int
    device: torch.device

    def features(self, examples: Sequence[Example]) -> Features:
        """Its rows of these examples. Raises ValueError for examples that it cannot read."""

    def logits(self, rows: Sequence[Row]) -> list[np.ndarray]:
        """Of each of these rows, side by side in one batch, fp32, as `answers.answers_of` takes them: without padding,
        labels in the order of the task."""


def open_model(directory: Path, task: Task) -> Model:
    """Load what an export of a fine-tuned model wrote, or any Hugging Face directory with a head for the task.

    Nothing is downloaded and no code from the directory is run. Raises ValueError when there is no such directory, it
    has no head, one of another kind or with other labels, it is damaged, or the package `transformers` is missing.
    """
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such directory; give that of a fine-tuned model")
    if is_finetuned(directory):
        return OwnModel(directory, task)
    try:
        from deberta_scale.evaluation.foreign import ForeignModel  # late: transformers takes seconds to load
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{directory}: a model of another kind than ours needs {error.name}, which is not installed; pip install"
            " 'deberta-scale[peers]'"
        ) from None

    return ForeignModel(directory, task)


def best_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class OwnModel:
    """What an export of a fine-tuned model wrote, read by our own code."""

    def __init__(self, directory: Path, task: Task) -> None:
        found = open_finetuned(directory)
        described = found.description
        if described.head != task.head:
            raise ValueError(
                f"{directory} was fine-tuned for {described.task}, whose head is for {described.head}; {task.name}"
                f" needs one for {task.head}"
            )
        self._task, self._described = task, described
        self._outputs: list[int] | None = None
        if task.head in ("classification", "tokens"):
            self._outputs = list(label_order(task.labels, described.labels, str(directory)).outputs)
        self.kind = f"deberta-scale, fine-tuned for {described.task}"
        other = f"fine-tuned for {described.task}, evaluated on {task.name}"
        self.notes: tuple[str, ...] = () if described.task == task.name else (other,)
        self.num_parameters = found.weights.num_parameters
        self.device = best_device()
        self._tokenizer = fitting_tokenizer(directory, found.config)
        self._head = load_head(found).to(self.device)

    def features(self, examples: Sequence[Example]) -> Features:
        return features_of(
            self._task, examples, self._tokenizer, self._described.max_length, self._described.stride_tokens
        )

    @torch.no_grad()
    def logits(self, rows: Sequence[Row]) -> list[np.ndarray]:
        batch = batch_of(rows)
        inputs = (torch.from_numpy(array).to(self.device) for array in (batch.token_ids, batch.segment_ids))
        outputs = self._head(*inputs)
        stacked = torch.stack(outputs, dim=1) if self._task.head == "span" else outputs
        return without_padding(self._task, stacked, rows, self._outputs)


def without_padding(
    task: Task, logits: torch.Tensor, rows: Sequence[Row], outputs: Sequence[int] | None
) -> list[np.ndarray]:
    """[B, …] of a batch → an array for each row; `outputs` are the numbers of the labels' outputs, None for all."""
    chosen = logits if outputs is None else logits[..., list(outputs)]
    arrays = chosen.float().cpu().numpy()
    if task.head == "span":
        return [array[:, : len(row.sequences[0])] for array, row in zip(arrays, rows, strict=True)]
    if task.head == "tokens":
        return [array[: len(row.sequences[0])] for array, row in zip(arrays, rows, strict=True)]
    return list(arrays)
