"""What a model of a task returns is what the formulas say, however rows are cut into batches and padded."""

import dataclasses
from typing import Any

import pytest
import torch

from deberta_scale.config_sift import SiftConfig
from deberta_scale.finetune.features import IGNORED
from deberta_scale.finetune.loader import FineTuningLoader, TaskBatch
from deberta_scale.finetune.model import TaskModel
from deberta_scale.finetune.rows import Row
from deberta_scale.finetune.sift import Sift
from deberta_scale.finetune.tasks import TASKS, Head
from tests.rows import small_model_config
from tests.task_rows import OF_HEAD, random_rows

SIFT = SiftConfig(weight=2.0, initial_noise=0.05, step_size=0.1)
HEADS = list(OF_HEAD)


def model_of(head: Head, sift: SiftConfig | None = None, **changes: Any) -> TaskModel:
    torch.manual_seed(3)
    return TaskModel(OF_HEAD[head], small_model_config(**changes), sift=sift)


def sums(model: TaskModel, batch: TaskBatch) -> torch.Tensor:
    """(loss, targets, right)"""
    found = model(batch)
    assert {value.dtype for value in found} == {torch.float32}
    return torch.stack(found).detach()


def loss_and_right(scores: torch.Tensor, target: int) -> torch.Tensor:
    return torch.stack([scores.exp().sum().log() - scores[target], (scores.argmax() == target).float()])


@torch.no_grad()
def expected(head: Head, model: TaskModel, row: Row) -> torch.Tensor:
    """(loss, targets, right) of one row by itself, of the outputs of encoder and head."""
    shown = [torch.from_numpy(sequence).long()[None] for sequence in row.sequences]
    target: Any = row.target
    if head == "choice":
        scores = [model.model(ids[:, None], torch.ones_like(ids)[:, None]).squeeze() for ids in shown]
        loss, right = loss_and_right(torch.stack(scores), target)
        return torch.stack([loss, torch.ones(()), right])
    outputs = model.model(shown[0], torch.ones_like(shown[0]))
    if head == "regression":
        return torch.tensor([(outputs.item() - target) ** 2, 1.0, 0.0])
    if head == "span":
        (first_loss, first), (last_loss, last) = (
            loss_and_right(ends[0], place) for ends, place in zip(outputs, target, strict=True)
        )
        return torch.stack([(first_loss + last_loss) / 2, torch.ones(()), first * last])
    pairs = [(outputs[0], target)] if head == "classification" else zip(outputs[0], target.tolist(), strict=True)
    found = [loss_and_right(scores, label) for scores, label in pairs if label != IGNORED]
    loss, right = torch.stack(found).sum(0)
    return torch.stack([loss, torch.tensor(float(len(found))), right])


@pytest.mark.parametrize("head", HEADS)
def test_sums_are_those_of_the_formulas_for_each_row_alone(head: Head) -> None:
    model, rows = model_of(head, conv_kernel_size=3), random_rows(head)
    by_row = torch.stack([expected(head, model, row) for row in rows])
    torch.testing.assert_close(sums(model, TaskBatch.of(rows)), by_row.sum(0), rtol=1e-4, atol=1e-4)
    assert by_row[:, 0].min() > 0


@pytest.mark.parametrize("head", HEADS)
def test_micro_batches_add_up_to_the_whole(head: Head) -> None:
    model, rows = model_of(head), random_rows(head)
    parts = [sums(model, TaskBatch.of(rows[first : first + 2])) for first in range(0, len(rows), 2)]
    torch.testing.assert_close(sum(parts), sums(model, TaskBatch.of(rows)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_more_padding_changes_nothing(head: Head) -> None:
    model, batch = model_of(head), TaskBatch.of(random_rows(head))

    def padded(tensor: torch.Tensor, value: int = 0) -> torch.Tensor:
        return torch.nn.functional.pad(tensor, (0, 9), value=value)

    assert batch.targets is not None
    targets = padded(batch.targets, IGNORED) if head == "tokens" else batch.targets
    wider = TaskBatch(padded(batch.token_ids), padded(batch.segment_ids), targets)
    torch.testing.assert_close(sums(model, wider), sums(model, batch), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("head", HEADS)
def test_right_answers_are_counted(head: Head) -> None:
    """Against targets that are what the model says, and others."""
    model, rows = model_of(head), random_rows(head)
    batch = TaskBatch.of(rows)
    said = model.logits(batch).argmax(-1)
    assert batch.targets is not None
    if head == "regression":
        assert sums(model, batch)[2] == 0
        return
    right = torch.where(batch.targets == IGNORED, IGNORED, said)
    _, counted, correct = sums(model, dataclasses.replace(batch, targets=right))
    assert correct == counted == (len(rows) if head != "tokens" else (batch.targets != IGNORED).sum())
    if head == "span":  # one end is not enough
        wrong = torch.stack([right[:, 0], (right[:, 1] + 1) % batch.token_ids.size(1)], dim=1)
        assert sums(model, dataclasses.replace(batch, targets=wrong))[2] == 0


@pytest.mark.parametrize("head", HEADS)
def test_rows_without_targets_make_a_pass_and_count_nothing(head: Head) -> None:
    rows = random_rows(head)
    no_rows = [batch for _, batch in FineTuningLoader(rows, 0, 8, rank=1, world_size=2).evaluation_batches()]
    unlabelled = TaskBatch.of([dataclasses.replace(row, target=None) for row in rows])
    model = model_of(head, SIFT, conv_kernel_size=3).eval()
    for batch in (*no_rows, unlabelled):
        with model.recorded() as recorded:
            assert sums(model, batch).tolist() == [0.0, 0.0, 0.0]
        assert len(recorded) == 1 and recorded[0].isfinite().all()
    assert len(no_rows) == 1


def test_a_choice_that_is_not_there_is_not_chosen() -> None:
    model, (row, *_) = model_of("choice"), random_rows("choice")
    one_less = TaskBatch.of([row])
    nothing = torch.zeros_like(one_less.token_ids[:, :1])
    batch = TaskBatch(
        torch.cat([one_less.token_ids, nothing], 1), torch.cat([one_less.segment_ids, nothing], 1), one_less.targets
    )
    with torch.no_grad():
        model.model.classifier.bias -= 50.0  # what is there is scored low
    torch.testing.assert_close(sums(model, batch), sums(model, one_less))
    assert model.logits(batch)[0, 2] < -1e30


@pytest.mark.parametrize("head", HEADS)
def test_with_sift_the_mean_is_that_of_the_loss_and_of_the_penalty(head: Head) -> None:
    batch = TaskBatch.of(random_rows(head))
    model, plain = model_of(head, SIFT), model_of(head)
    loss_sum, counted, correct = sums(plain, batch)
    compared = {"span": batch.segment_ids > 0, "tokens": batch.targets != IGNORED}
    torch.manual_seed(7)
    sifted = Sift(plain.model, SIFT, head)(
        lambda: plain.model(batch.token_ids, batch.segment_ids), counted=compared.get(head)
    )
    assert sifted.penalty > 0
    torch.manual_seed(7)
    found = sums(model, batch)
    torch.testing.assert_close(found[0] / counted, loss_sum / counted + sifted.penalty.detach(), rtol=1e-5, atol=1e-5)
    assert found[1:].tolist() == [counted, correct]
    torch.testing.assert_close(sums(model.eval(), batch), sums(plain.eval(), batch))


@pytest.mark.parametrize("head", HEADS)
def test_every_weight_but_the_position_table_gets_a_gradient(head: Head) -> None:
    model = model_of(head, SIFT)
    model(TaskBatch.of(random_rows(head)))[0].backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"model.deberta.embeddings.position_embeddings.weight"}


def test_outputs_are_as_many_as_labels_and_numbers_have_one() -> None:
    outputs = {name: TaskModel(TASKS[name], small_model_config()).model for name in ("mnli", "sts-b", "conll-2003")}
    assert {name: model.classifier.out_features for name, model in outputs.items()} == {
        "mnli": 3,
        "sts-b": 1,
        "conll-2003": 9,
    }


def test_the_dropout_of_the_head_is_the_encoders_unless_given_and_refused_where_there_is_none() -> None:
    config = small_model_config(hidden_dropout_prob=0.25)
    assert TaskModel(TASKS["mnli"], config).model.dropout.p == 0.25
    assert TaskModel(TASKS["conll-2003"], config, head_dropout=0.5).model.dropout.p == 0.5
    with pytest.raises(ValueError, match=r"head_dropout 0\.1 has no effect on squad-2\.0"):
        TaskModel(TASKS["squad-2.0"], config, head_dropout=0.1)


def test_sift_that_does_not_suit_the_task_is_refused() -> None:
    with pytest.raises(ValueError, match="official knows classification and choice only, not span"):
        model_of("span", SiftConfig(weight=1.0, compat="official"))
