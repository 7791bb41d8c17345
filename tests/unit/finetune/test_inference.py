"""All rows of a split go through the model once, and what it says of them becomes predictions."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from deberta_scale.finetune.inference import predict, predictions_of
from deberta_scale.finetune.loader import FineTuningLoader, TaskBatch
from deberta_scale.finetune.model import TaskModel
from deberta_scale.finetune.predictions import best_candidates
from deberta_scale.finetune.readers import Example
from deberta_scale.finetune.rows import Row
from deberta_scale.finetune.tasks import TASKS, Head
from deberta_scale.train.evaluation import EvaluationStopped
from deberta_scale.train.guards import DivergedError
from tests.rows import small_model_config
from tests.task_rows import OF_HEAD, random_rows


@pytest.fixture(autouse=True, scope="module")
def process_group() -> Iterator[None]:
    """Of a single rank."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


class Engine:
    """A model called as an engine is."""

    def __init__(self, head: Head) -> None:
        torch.manual_seed(3)
        self.module = TaskModel(OF_HEAD[head], small_model_config(hidden_dropout_prob=0.5))
        self.device = torch.device("cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)

    def __call__(self, batch: TaskBatch) -> Any:
        return self.module(batch)


def loader(rows: list[Row], micro: int = 2) -> FineTuningLoader:
    return FineTuningLoader(rows, 0, micro, rank=0, world_size=1)


@pytest.mark.parametrize("head", list(OF_HEAD))
def test_logits_of_all_rows_in_their_order_without_padding_and_the_mean_loss(head: Head) -> None:
    engine, rows = Engine(head), random_rows(head)
    found = predict(engine, loader(rows))
    model = engine.module.eval()
    for row, logits in zip(rows, found.logits, strict=True):
        alone = model.logits(TaskBatch.of([row]))[0].detach().numpy()
        np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-4, strict=True)
    loss_sum, counted, _ = model(TaskBatch.of(rows))
    assert found.loss == pytest.approx((loss_sum / counted).item(), rel=1e-4)


def test_a_split_without_labels_has_logits_and_no_loss() -> None:
    rows = [Row(row.sequences, None, row.example) for row in random_rows("classification")]
    found = predict(Engine("classification"), loader(rows))
    assert len(found.logits) == len(rows) and found.loss is None


def test_the_model_is_trained_on_after_an_evaluation_and_after_one_that_was_left() -> None:
    engine = Engine("regression")
    reasons = iter([None, None, "time is up"])
    with pytest.raises(EvaluationStopped, match="time is up"):
        predict(engine, loader(random_rows("regression"), micro=1), lambda: next(reasons))
    assert next(reasons, "none left") == "none left" and engine.module.training
    predict(engine, loader(random_rows("regression")))
    assert engine.module.training


def test_outputs_that_are_not_finite_are_no_predictions() -> None:
    engine, rows = Engine("tokens"), random_rows("tokens")
    row = rows[2].sequences[0]
    row[1] = 89
    assert sum((other.sequences[0] == 89).any() for other in rows) == 1
    with torch.no_grad():
        engine.module.model.deberta.embeddings.word_embeddings.weight[89] = torch.nan
    with pytest.raises(DivergedError, match="no finite output for 1 of 5 rows"):
        predict(engine, loader(rows))


def rows_of(*sequence_lengths: int) -> list[Row]:
    return [Row((np.ones(length, dtype=np.int32),), None, n) for n, length in enumerate(sequence_lengths)]


def test_labels_are_the_largest_outputs() -> None:
    examples = [Example(("a", "b")), Example(("c", "d"))]
    logits = [np.array([0.0, 2.0, 1.0]), np.array([0.0, 0.0, 3.0])]
    found = predictions_of(TASKS["mnli"], examples, rows_of(4, 5), logits)
    assert [prediction.value for prediction in found] == ["neutral", "entailment"]
    assert found[1].score == pytest.approx(3.0 - np.log(2.0))


def test_numbers_are_outputs() -> None:
    found = predictions_of(
        TASKS["sts-b"], [Example(("a", "b"))] * 2, rows_of(4, 5), [np.array([2.5]), np.array([-1.0])]
    )
    assert [prediction.value for prediction in found] == [2.5, -1.0]


def test_choices_have_the_names_of_labels() -> None:
    logits = [np.array([0.0, 1.0, 5.0, 2.0]), np.array([7.0, 1.0, 5.0, 2.0])]
    found = predictions_of(TASKS["race"], [Example(())] * 2, rows_of(4, 5), logits)
    assert [prediction.value for prediction in found] == ["C", "A"]


def test_of_candidates_the_likeliest_is_chosen() -> None:
    """Though the model finds both more wrong than right."""
    examples = [Example(("text", "query"), group="1", candidate=name) for name in ("Ann", "Bob")]
    logits = [np.array([2.0, 0.0]), np.array([1.0, 0.0])]
    found = predictions_of(TASKS["record"], examples, rows_of(4, 5), logits)
    assert [prediction.value for prediction in found] == ["0", "0"]
    assert best_candidates(examples, found) == {"1": "Bob"}


def test_words_of_an_example_may_lie_in_two_rows() -> None:
    examples = [Example(("Ann", "sang")), Example(("in", "Rome"))]
    one, other = rows_of(6, 3)
    rows = [
        Row(one.sequences, None, 0, words=((1, 0, 0), (3, 0, 1), (4, 1, 0))),
        Row(other.sequences, None, 1, words=((1, 1, 1),)),
    ]
    names = TASKS["conll-2003"].labels.names
    logits = [np.zeros((6, len(names))), np.zeros((3, len(names)))]
    logits[0][1, names.index("B-PER")] = 1.0
    logits[0][2:5, 0] = 1.0
    logits[1][1, names.index("B-LOC")] = 1.0
    found = predictions_of(TASKS["conll-2003"], examples, rows, logits)
    assert [prediction.value for prediction in found] == [("B-PER", "O"), ("O", "B-LOC")]


def test_answers_are_cut_from_the_context_where_both_ends_are_likeliest() -> None:
    rows = random_rows("span", lengths=(10, 12))
    examples = [Example(("who", "abcdefghij")), Example(("who", "klmnopqrst"))]
    logits = [np.zeros((2, 10)), np.zeros((2, 12))]
    logits[0][0, 5], logits[0][1, 7] = 3.0, 2.0
    logits[1][0, 0], logits[1][1, 0], logits[1][0, 4] = 4.0, 4.0, 1.0
    found = predictions_of(TASKS["squad-2.0"], examples, rows, logits)
    assert found[0].value == "bcd" and found[0].score == pytest.approx(-5.0)
    assert found[1].score == pytest.approx(8.0 - 1.0), "no answer is likelier"
