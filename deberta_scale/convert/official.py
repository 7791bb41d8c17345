"""Weights → the form of the official code (github.com/microsoft/DeBERTa): `pytorch_model.bin`, `model_config.json`,
tokenizer file. Names and layout are those that `MaskedLanguageModel` there has, which are our own."""

import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deberta_scale.config import ModelConfig
from deberta_scale.convert.hub_config import refuse_other_head_size
from deberta_scale.convert.native import NO_TOKENIZER, tokenizer_files
from deberta_scale.convert.source import Source, Weights
from deberta_scale.convert.stored import BIN_FILE, laid_out
from deberta_scale.data.tokenizer import MASK_PIECE, METADATA_FILE, PAD_ID, SPECIAL_PIECES
from deberta_scale.durable import published_directory, refuse_used

CONFIG_FILE, V1_TOKENIZER_FILE = "model_config.json", "bpe_encoder.bin"
_SAME_KEYS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "max_position_embeddings",
    "relative_attention",
    "position_biased_input",
    "share_att_key",
    "max_relative_positions",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "initializer_range",
    "layer_norm_eps",
)


def export(source: Source, destination: Path) -> tuple[str, ...]:
    """Write `destination`, whole or not at all. The weights are in fp32, and in memory one tensor at a time.

    Returns what the user should know, the source's notes first. Raises ValueError when `destination` is in use,
    ConversionError when the official code has no such model, or when weights or tokenizer are not the config's,
    TokenizerError for a tokenizer that is damaged.
    """
    refuse_used(destination)
    config = official_config(source.config)
    source.check()
    tokenizer = tokenizer_files(source)
    if source.tokenizer is not None and (source.tokenizer / V1_TOKENIZER_FILE).is_file():
        tokenizer[V1_TOKENIZER_FILE] = (source.tokenizer / V1_TOKENIZER_FILE).read_bytes()
    elif "vocab.json" in tokenizer:
        tokenizer[V1_TOKENIZER_FILE] = _byte_pairs(tokenizer["vocab.json"], tokenizer["merges.txt"])
    with published_directory(destination) as partial:
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        _write_weights(partial / BIN_FILE, source.weights)
        for name, content in tokenizer.items():
            (partial / name).write_bytes(content)
    return (*source.notes, *_limits(source.config, tokenizer))


def official_config(config: ModelConfig) -> dict[str, Any]:
    """`model_config.json`, every key of the model written out. Raises ConversionError as `export`."""
    refuse_other_head_size(config, "the official code")
    keys = {name: getattr(config, name) for name in _SAME_KEYS} | {
        "pos_att_type": "|".join(config.pos_att_type) if config.relative_attention else "none",
        "position_buckets": config.position_buckets or -1,
        "norm_rel_ebd": config.norm_rel_ebd if config.relative_attention else "none",
        "attention_head_size": config.head_size,
        "embedding_size": config.word_embedding_size,
        "hidden_act": "gelu",
        "type_vocab_size": 0,
        "padding_idx": PAD_ID,
    }
    if config.conv_kernel_size:
        keys |= {"conv_kernel_size": config.conv_kernel_size, "conv_act": config.conv_act, "conv_groups": 1}
    return keys


def _limits(config: ModelConfig, tokenizer: dict[str, bytes]) -> list[str]:
    """What the official code (commit 4d7fe0b) cannot do with such a model, although the directory holds all of it."""
    found = []
    if config.relative_attention and config.pos_att_type == ("p2c",):
        found.append("the official code fails in its first forward pass when pos_att_type is p2c alone")
    if config.relative_attention and config.word_embedding_size != config.hidden_size:
        found.append(
            f"the official code makes position tables as wide as words (embedding_size {config.word_embedding_size}),"
            " which its mask decoder cannot add to hidden states: it runs the encoder of this model only"
        )
    if not tokenizer:
        found.append(NO_TOKENIZER)
    elif json.loads(tokenizer[METADATA_FILE])["added_tokens"]:
        found.append(f"the official code does not know the tokens that {METADATA_FILE} adds to the vocabulary")
    return found


def _byte_pairs(vocabulary: bytes, merges: bytes) -> bytes:
    """`bpe_encoder.bin` of a V1 tokenizer. The official code gives ids in the order of `dict_map` after the special
    pieces, and then one to [MASK]; the numbers of `encoder`, GPT-2's in the release, are the ids here."""
    ids: dict[str, int] = json.loads(vocabulary)
    content = {
        "encoder": ids,
        "dict_map": [[str(number), 1] for piece, number in ids.items() if piece not in (*SPECIAL_PIECES, MASK_PIECE)],
        "vocab": [tuple(line.split(" ")) for line in merges.decode().rstrip("\n").split("\n")[1:]],
    }
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def _write_weights(path: Path, weights: Weights) -> None:
    """torch.save wants all tensors at once: they stand in a file beside it meanwhile, mapped, not in memory."""
    values = path.with_name(path.name + ".values")
    mapped = np.memmap(values, dtype=np.float32, mode="w+", shape=(weights.num_parameters,))
    state: dict[str, torch.Tensor] = {}
    for name, shape, start in laid_out(weights):
        part = mapped[start // 4 : start // 4 + math.prod(shape)]
        part[:] = weights.read(name).flatten().numpy()
        state[name] = torch.from_numpy(part).view(shape)  # its storage is this part alone
    torch.save(state, path)
    del state, part, mapped
    values.unlink()
