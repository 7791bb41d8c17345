"""The class that travels with the weights is the pretraining model, to `transformers` and in value."""

import types
from pathlib import Path
from typing import Any

import pytest
import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.convert.huggingface import export
from deberta_scale.model.relative import rows_by_distance
from tests.exporting import CONFIGS, export_all, random_model, source_of
from tests.rows import small_model_config

transformers = pytest.importorskip("transformers", reason="the peer to compare with; pip install '.[peers]'")

SHORT, LENGTH = 23, 41
VOCABULARY = 640


@pytest.fixture(scope="module", autouse=True)
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Where transformers copies code that is trusted: not the home directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, prepared_shards: Path) -> dict[str, Path]:
    return export_all(tmp_path_factory.mktemp("exported"), prepared_shards / "tokenizer")


def load(directory: Path) -> Any:
    """As a user does, and nothing may be missing or left over."""
    model, loading = transformers.AutoModelForMaskedLM.from_pretrained(
        directory, trust_remote_code=True, output_loading_info=True
    )
    assert type(model).__name__ == "DebertaScaleForMaskedLM"
    assert not any(loading.values()), loading
    return model


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [2, LENGTH]: a whole row and a padded one."""
    token_ids = torch.randint(4, VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(3))
    is_token = torch.ones_like(token_ids)
    token_ids[1, SHORT:], is_token[1, SHORT:] = 0, 0
    return token_ids, is_token


def everywhere(token_ids: torch.Tensor, is_token: torch.Tensor) -> MaskedBatch:
    """Rows to be predicted at every token."""
    places = is_token.flatten().nonzero().flatten()
    return MaskedBatch(
        token_ids=token_ids,
        segment_ids=is_token,
        position_ids=torch.arange(token_ids.size(1)).expand_as(token_ids),
        predict_positions=places,
        predict_ids=token_ids.flatten()[places],
        max_predictions_per_row=token_ids.size(1),
    )


@torch.no_grad()
def logits_of_both(ours: Any, theirs: Any) -> tuple[torch.Tensor, torch.Tensor]:
    token_ids, is_token = rows()
    found = theirs(input_ids=token_ids, attention_mask=is_token).logits[is_token.bool()]
    return found, ours.logits(everywhere(token_ids, is_token))


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_those_of_pretraining(exported: dict[str, Path], name: str) -> None:
    found, expected = logits_of_both(random_model(CONFIGS[name]), load(exported[name]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_distances_beyond_the_trained_ones_are_clamped_as_in_pretraining(tmp_path: Path) -> None:
    config = small_model_config(vocab_size=VOCABULARY, max_relative_positions=16, position_buckets=8)
    export(source_of(random_model(config), tokenizer=None), tmp_path / "far")
    found, expected = logits_of_both(random_model(config), load(tmp_path / "far"))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("buckets", [256, 0])
def test_distances_are_those_of_pretraining_at_the_released_sizes(buckets: int) -> None:
    from deberta_scale.convert.modeling_deberta_scale import relative_distances

    config = small_model_config(position_buckets=buckets, max_relative_positions=512)
    encoder = types.SimpleNamespace(position_buckets=buckets or -1, max_relative_positions=512)
    length, span = 1100, config.relative_span
    found = relative_distances(length, encoder, torch.device("cpu"))[0]
    places = torch.arange(length)
    expected = rows_by_distance(length, config, torch.device("cpu"))[places[:, None] - places + length - 1]
    assert torch.equal((found + span).clamp(0, 2 * span - 1), expected)


@pytest.mark.parametrize("name", ["V2-XLarge, narrow words", "baseline"])
def test_padding_may_be_on_the_left(exported: dict[str, Path], name: str) -> None:
    model = load(exported[name])
    token_ids, is_token = rows()
    ids, mask = token_ids[1:], is_token[1:]
    with torch.no_grad():
        alone = model(input_ids=ids[:, :SHORT]).logits
        shifted = model(input_ids=ids.roll(7, 1), attention_mask=mask.roll(7, 1)).logits[:, 7 : 7 + SHORT]
    torch.testing.assert_close(shifted, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["V3", "V2-XLarge, narrow words", "baseline, narrow words"])
def test_loss_and_gradients_are_those_of_pretraining(exported: dict[str, Path], name: str) -> None:
    ours, theirs = random_model(CONFIGS[name]), load(exported[name])
    token_ids, is_token = rows()
    batch = everywhere(token_ids, is_token)
    loss_sum, predicted, _ = ours(batch)
    (loss_sum / predicted).backward()
    labels = token_ids.masked_fill(is_token == 0, -100)
    loss = theirs(input_ids=token_ids, attention_mask=is_token, labels=labels).loss
    loss.backward()
    torch.testing.assert_close(loss, loss_sum / predicted, rtol=0, atol=1e-5)
    expected = {key: parameter.grad for key, parameter in ours.named_parameters()}
    for key, parameter in theirs.named_parameters():
        gradient = expected[key].clone()
        if key.endswith("word_embeddings.weight"):
            gradient[0] = parameter.grad[0]  # stock tables give padding no gradient from the input
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated")
@pytest.mark.parametrize("reentrant", [True, False])
def test_gradients_survive_checkpointing(exported: dict[str, Path], reentrant: bool) -> None:
    token_ids, is_token = rows()
    plain, checkpointed = load(exported["V3"]), load(exported["V3"])
    checkpointed.gradient_checkpointing_enable({"use_reentrant": reentrant})
    for model in (plain, checkpointed):
        model.train()(input_ids=token_ids, attention_mask=is_token, labels=token_ids).loss.backward()
    expected = dict(plain.named_parameters())
    for key, parameter in checkpointed.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[key].grad, rtol=1e-5, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", CONFIGS)
def test_saved_and_loaded_it_is_the_same(exported: dict[str, Path], tmp_path: Path, name: str) -> None:
    model = load(exported[name])
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again")
    token_ids, is_token = rows()
    with torch.no_grad():
        first, second = (m(input_ids=token_ids, attention_mask=is_token).logits for m in (model, again))
    assert torch.equal(first, second)
    encoder = transformers.AutoModel.from_pretrained(tmp_path / "again", trust_remote_code=False)
    assert type(encoder).__name__ == "DebertaV2Model"
    saved = model.state_dict()
    assert all(torch.equal(tensor, saved[f"deberta.{key}"]) for key, tensor in encoder.state_dict().items())


@pytest.mark.parametrize("size", [VOCABULARY + 5, VOCABULARY - 30])
def test_the_vocabulary_can_be_resized(exported: dict[str, Path], tmp_path: Path, size: int) -> None:
    model = load(exported["V2-XLarge, narrow words"])
    token_ids = rows()[0] % (VOCABULARY - 30)
    kept = min(size, VOCABULARY)
    with torch.no_grad():
        before = model(input_ids=token_ids[:1]).logits
        model.resize_token_embeddings(size)
        after = model(input_ids=token_ids[:1]).logits
    assert model.get_output_embeddings() is model.get_input_embeddings()
    assert after.size(-1) == model.config.vocab_size == size
    torch.testing.assert_close(after[..., :kept], before[..., :kept], rtol=0, atol=1e-5)
    model.save_pretrained(tmp_path / "resized")
    assert load(tmp_path / "resized").lm_predictions["lm_head"].bias.shape == (size,)


def test_outputs_are_those_transformers_users_know(exported: dict[str, Path]) -> None:
    model = load(exported["V3"])
    token_ids, is_token = rows()
    with torch.no_grad():
        whole = model(token_ids, is_token, output_hidden_states=True, output_attentions=True)
        as_tuple = model(token_ids, is_token, labels=token_ids, return_dict=False)
        embedded = model.get_input_embeddings()(token_ids)
        from_embeddings = model(inputs_embeds=embedded, attention_mask=is_token).logits
        stock = transformers.AutoModel.from_pretrained(exported["V3"])
        expected = stock.eval()(token_ids, is_token, output_hidden_states=True).hidden_states
    layers = CONFIGS["V3"].num_hidden_layers
    assert len(whole.hidden_states) == layers + 1
    assert len(whole.attentions) == layers
    for found, wanted in zip(whole.hidden_states[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert torch.equal(as_tuple[1], whole.logits)
    assert torch.equal(from_embeddings, whole.logits)


def test_what_it_cannot_do_is_said(exported: dict[str, Path]) -> None:
    model = load(exported["V3"])
    with pytest.raises(ValueError, match=r"65 tokens, the model has 64 positions; call the tokenizer with truncation"):
        model(input_ids=torch.full((1, 65), 7))
    with pytest.raises(ValueError, match="give input_ids or inputs_embeds, one of them"):
        model()


def test_half_precision_gives_about_the_same(exported: dict[str, Path]) -> None:
    token_ids, is_token = rows()
    whole, half = load(exported["V3"]), load(exported["V3"]).to(torch.bfloat16)
    with torch.no_grad():
        expected, found = (m(input_ids=token_ids, attention_mask=is_token).logits.float() for m in (whole, half))
    real = is_token.bool()
    assert (found[real] - expected[real]).abs().mean() < 0.05 * expected[real].abs().mean()
