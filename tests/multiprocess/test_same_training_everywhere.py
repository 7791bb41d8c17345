"""ZeRO stage, number of ranks and accumulation change where the work happens, not what is learned."""

import json
from itertools import chain
from pathlib import Path

import pytest
import torch

from data_prep.inputs import Reading, find_inputs
from data_prep.tokenize_corpus import tokenize
from deberta_scale.config import Config
from deberta_scale.config_file import load
from deberta_scale.data.loader import MaskedLoader
from deberta_scale.model.pretraining import PretrainingModel
from deberta_scale.train.optim import parameter_groups
from deberta_scale.train.schedule import learning_rate_factor
from tests.launching import run_worker

WORKER = Path(__file__).with_name("training_worker.py")
STEPS = 20


def plain_torch_losses(config: Config) -> list[float]:
    """The same training with nothing but torch: one process, one batch, one optimizer."""
    loader = MaskedLoader(
        config.data.shards / "train",
        config.data,
        seed=config.seed,
        micro_sequences=config.batch.sequences,
        rank=0,
        world_size=1,
        model_vocab_size=config.model.vocab_size,
    )
    torch.manual_seed(config.seed)
    model = PretrainingModel(config.model)
    settings = config.optimizer
    groups = parameter_groups(model.named_parameters(), settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.eps)
    losses = []
    for step in range(config.train.steps):
        for group in optimizer.param_groups:
            factor = learning_rate_factor(config.schedule, step, config.train.steps)
            group["lr"] = settings.learning_rate * factor
        (batch,) = loader.step(step * config.batch.sequences, config.batch.sequences).micro_batches
        loss_sum, predicted, _ = model(batch)
        loss = loss_sum / predicted
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_all_stages_and_rank_counts_give_the_losses_of_plain_torch(config_path: Path, tmp_path: Path) -> None:
    """R12."""
    expected = plain_torch_losses(load(config_path, [f"train.steps={STEPS}"]))
    assert expected[-1] < expected[0] - 0.3, "the comparison needs a model that learns"
    stages = [[f"train.steps={STEPS}", f"engine.zero_stage={stage}", "engine.precision=fp32"] for stage in range(4)]
    for world_size in (1, 2):
        for stage, losses in enumerate(run_worker(WORKER, tmp_path, world_size, "losses", config_path, *stages)):
            assert losses == pytest.approx(expected, rel=1e-5), f"stage {stage}, {world_size} rank(s)"


def test_all_kernels_of_attention_give_the_same_losses(config_path: Path, tmp_path: Path) -> None:
    """On two ranks in ZeRO stage 3, with activations recomputed and probabilities dropped."""
    options = [f"train.steps={STEPS}", "engine.zero_stage=3", "engine.precision=fp32"]
    options += ["engine.activation_checkpointing=non_reentrant", "model.attention_probs_dropout_prob=0.2"]
    kernels = [[*options, f"engine.attention={name}"] for name in ("reference", "skew", "cpu")]
    expected, *others = run_worker(WORKER, tmp_path, 2, "losses", config_path, *kernels)
    assert expected[-1] < expected[0] - 0.3, "the comparison needs a model that learns"
    for losses in others:
        assert losses == pytest.approx(expected, rel=1e-5)


def test_one_batch_has_one_gradient_however_it_is_split(
    config_path: Path, prepared_shards: Path, sample_documents: list[str], tmp_path: Path
) -> None:
    """R9."""
    paragraphs = [p for document in sample_documents for p in document.split("\n") if p]
    text = tmp_path / "paragraphs.jsonl"
    text.write_text("".join(json.dumps({"text": paragraph}) + "\n" for paragraph in paragraphs))
    shards = tmp_path / "shards"  # of documents of very different lengths, one a row
    tokenize(find_inputs([text]), Reading(), prepared_shards / "tokenizer", shards)
    gradients = []
    for world_size, accumulation in ((1, 8), (2, 4), (4, 2)):
        options = ["batch.sequences=16", f"batch.micro_sequences={16 // (world_size * accumulation)}"]
        options += ["engine.zero_stage=2", "data.packing=doc", f"data.shards={shards}"]
        (result,) = run_worker(WORKER, tmp_path, world_size, "gradient", config_path, options)
        counts = list(chain.from_iterable(result["predicted"]))
        assert len(counts) == 8 and len(set(counts)) > 1, "the comparison needs unequal counts of predicted tokens"
        gradients.append(torch.tensor(result["gradient"]))
    assert gradients[0].norm() > 0.1
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_rank_without_predictions_joins_in_and_a_step_without_any_is_an_error(
    config_path: Path, tmp_path: Path, stage: int
) -> None:
    """R10."""
    options = [f"engine.zero_stage={stage}", "engine.activation_checkpointing=non_reentrant"]
    (result,) = run_worker(WORKER, tmp_path, 2, "without_predictions", config_path, options)
    assert result["finite"] and 1.0 < result["loss"] < 10.0
    assert result["step"] == 1, "the second step did not happen"
    assert len(result["message"]) == 2 and all(
        "step 2: no row of this step has a token" in m for m in result["message"]
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_activation_checkpointing_changes_nothing(config_path: Path, tmp_path: Path, precision: str) -> None:
    common = ["train.steps=6", f"engine.precision={precision}", "model.hidden_dropout_prob=0.1"]
    modes = [[*common, f"engine.activation_checkpointing={mode}"] for mode in ("none", "non_reentrant")]
    without, with_checkpointing = run_worker(WORKER, tmp_path, 2, "losses", config_path, *modes)
    assert with_checkpointing == without
    assert without[-1] < without[0]
