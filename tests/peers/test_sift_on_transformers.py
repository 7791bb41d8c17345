"""Adversarial training of stock encoders, as docs/sift.md shows it."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from deberta_scale.config_sift import SiftConfig
from deberta_scale.finetune.sift import Sift
from deberta_scale.model.heads import SequenceModel
from tests.launching import ROOT
from tests.rows import batch_of, small_model_config

transformers = pytest.importorskip("transformers", reason="the peers extra is not installed")

SIZES = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
FAMILIES: dict[str, tuple[dict[str, Any], str]] = {
    "Bert": (SIZES, "bert.embeddings.LayerNorm"),
    "Roberta": (SIZES, "roberta.embeddings.LayerNorm"),
    "Electra": (SIZES | {"embedding_size": 16}, "electra.embeddings.LayerNorm"),
    "DebertaV2": (SIZES | {"relative_attention": True}, "deberta.embeddings.LayerNorm"),
    "XLNet": (
        {"vocab_size": 90, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
        "transformer.word_embedding",
    ),
}
CONFIG = SiftConfig(weight=1.0, initial_noise=0.05, step_size=0.1)
BATCH = batch_of([[17], [11], [6]], 17, [[], [], []])
LABELS = torch.tensor([0, 2, 1])


def inputs_of(labels: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"input_ids": BATCH.token_ids, "attention_mask": BATCH.segment_ids, "labels": labels}


def stock(family: str, task: str, **settings: Any) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**FAMILIES[family][0], **settings)
    model = getattr(transformers, f"{family}For{task}")(config).train()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embeddings_of_every_family_are_found_and_perturbed_in_their_own_scale(family: str) -> None:
    model = stock(family, "SequenceClassification", num_labels=3)
    sift = Sift(model, CONFIG, "classification")
    assert list(sift.modules) == [FAMILIES[family][1]]
    (module,) = sift.modules.values()
    seen: list[torch.Tensor] = []

    def forward() -> Any:
        handle = (
            module.register_forward_hook(lambda _, given, output: seen.append(output.detach()))
            if family == "XLNet"
            else module.register_forward_pre_hook(lambda _, given: seen.append(given[0].detach()))
        )
        outputs = model(**inputs_of(LABELS))
        handle.remove()
        return outputs

    sifted = sift(forward, logits=lambda outputs: outputs.logits)
    clean, start, last = (tensor.view(3, 17, -1) if family != "XLNet" else tensor.transpose(0, 1) for tensor in seen)
    deviation = clean.std(-1, correction=0, keepdim=True)
    step = ((last - start) / deviation).abs().amax(-1)[BATCH.segment_ids > 0]
    torch.testing.assert_close(step, torch.full_like(step, 0.1), rtol=1e-2, atol=0.0)
    assert sifted.penalty > 0
    sifted.penalty.backward()
    assert module.weight.grad.abs().max() > 0
    assert torch.isfinite(module.weight.grad).all()


def test_nothing_of_dropout_is_left_in_the_penalty() -> None:
    model = stock("Bert", "SequenceClassification", num_labels=3)
    assert model.config.hidden_dropout_prob == 0.1
    unnoticeable = CONFIG.model_copy(update={"initial_noise": 1e-30, "step_size": 1e-30})
    sift = Sift(model, unnoticeable, "classification")
    assert sift(lambda: model(**inputs_of(LABELS)).logits).penalty == 0


@pytest.mark.parametrize("reentrant", [True, False])
def test_its_own_activation_checkpointing_works_unless_reentrant(reentrant: bool) -> None:
    def sifted(model: Any) -> Any:
        torch.manual_seed(1)
        return Sift(model, CONFIG, "classification")(lambda: model(**inputs_of(LABELS)).logits)

    expected = sifted(stock("Bert", "SequenceClassification", num_labels=3)).penalty
    model = stock("Bert", "SequenceClassification", num_labels=3)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        with pytest.raises(RuntimeError, match="use_reentrant=True"):
            sifted(model)
    else:
        torch.testing.assert_close(sifted(model).penalty, expected)


def test_tokens_and_spans_of_stock_heads() -> None:
    is_text = BATCH.segment_ids > 0
    labels = torch.where(is_text, 1, -100)
    model = stock("Bert", "TokenClassification", num_labels=4)
    tokens = Sift(model, CONFIG, "tokens")(lambda: model(**inputs_of(labels)), lambda o: o.logits, labels != -100)
    assert tokens.num_compared == 34 and tokens.penalty > 0
    reader = stock("Bert", "QuestionAnswering")
    rows = {"input_ids": BATCH.token_ids, "attention_mask": BATCH.segment_ids}
    spans = Sift(reader, CONFIG, "span")(
        lambda: reader(**rows), lambda outputs: (outputs.start_logits, outputs.end_logits), is_text
    )
    assert spans.num_compared == 6 and spans.penalty > 0


def documented(number: int) -> str:
    """A block of Python in docs/sift.md."""
    return re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "sift.md").read_text(encoding="utf-8"), re.DOTALL)[
        number
    ]


def test_the_documented_call_trains() -> None:
    model = stock("DebertaV2", "SequenceClassification", num_labels=3)
    names: dict[str, Any] = {"model": model, "inputs": inputs_of(LABELS)}
    exec(documented(0), names)
    assert names["loss"] > names["sifted"].outputs.loss
    assert all(p.grad is not None for n, p in model.named_parameters() if "LayerNorm" in n)


def test_the_documented_trainer_adds_the_penalty_to_the_trainers_own_loss() -> None:
    """Its `compute_loss`, through the real Trainer's. A whole Trainer needs a package that nothing else here needs."""
    model = stock("Roberta", "SequenceClassification", num_labels=3)
    names: dict[str, Any] = {}
    exec(documented(1), names)
    trainer = object.__new__(names["SiftTrainer"])
    vars(trainer).update(
        sift=Sift(model, CONFIG, "classification"),
        label_smoother=None,
        compute_loss_func=None,
        model_accepts_loss_kwargs=True,
        accelerator=None,
        args=SimpleNamespace(average_tokens_across_devices=True),
    )
    inputs = inputs_of(LABELS)
    torch.manual_seed(7)
    loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=3)
    torch.manual_seed(7)
    assert torch.equal(trainer.compute_loss(model, inputs), loss)
    assert loss > outputs.loss
    torch.testing.assert_close(outputs.loss, cross_entropy(outputs.logits, LABELS))
    model.eval()
    loss, outputs = trainer.compute_loss(model, inputs, return_outputs=True)
    assert loss == outputs.loss


def test_the_documented_module_gives_sums() -> None:
    names: dict[str, Any] = {
        "SiftConfig": SiftConfig,
        "cross_entropy": cross_entropy,
        "model": SequenceModel(small_model_config(), 3, 0.0),
        "token_ids": BATCH.token_ids,
        "segment_ids": BATCH.segment_ids,
        "labels": LABELS,
    }
    exec(documented(2), names)
    names["loss_sum"].backward()
    assert names["sifted"].num_compared == 3


def test_every_option_is_documented() -> None:
    text = (ROOT / "docs" / "sift.md").read_text(encoding="utf-8")
    table = text.split("## Options")[1].split("**Where.**")[0]
    assert set(SiftConfig.model_fields) <= set(re.findall(r"`(\w+)`", table))
