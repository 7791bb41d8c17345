"""Fill [MASK] with an exported model: `python -m deberta_scale.convert.fill_mask DIR "The [MASK] was very kind."`.

Uses the enhanced mask decoder the model was trained with, which `transformers` does not have, and needs no
`transformers` itself.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import safetensors
import sentencepiece
import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.convert.huggingface import WEIGHTS_FILE, ConversionError, model_on_meta, read_model_config
from deberta_scale.data.tokenizer import MASK_PIECE, MODEL_FILE, SPECIAL, WORD_START, Tokenizer
from deberta_scale.model.pretraining import PretrainingModel

_STANDING_IN = "\U0010fffd"
"""A private character that no text has, so that no piece holds it and it ends every piece before it."""


class FillMask:
    """A model and its tokenizer, on the CPU."""

    def __init__(self, model: PretrainingModel, tokenizer: Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        flags = torch.from_numpy(tokenizer.flags())
        self._starts_word = (flags & WORD_START).bool()
        self._is_answer = torch.zeros(model.config.vocab_size, dtype=torch.bool)  # no special and no spare row
        self._is_answer[: len(flags)] = (flags & SPECIAL) == 0

    @staticmethod
    def load(directory: Path) -> "FillMask":
        """Read an exported directory. Raises ConversionError naming the file that is missing or does not fit."""
        config = read_model_config(directory)
        weights_path, tokenizer_path = directory / WEIGHTS_FILE, directory / MODEL_FILE
        model = model_on_meta(config)
        try:
            with safetensors.safe_open(weights_path, framework="pt") as file:
                weights = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 - no mapping
            model.load_state_dict(weights, assign=True)
        except (OSError, RuntimeError, safetensors.SafetensorError) as error:
            raise ConversionError(f"{weights_path}: does not hold the weights of config.json: {error}") from None
        try:
            proto = tokenizer_path.read_bytes()
            processor = sentencepiece.SentencePieceProcessor(model_proto=proto)
        except (OSError, RuntimeError) as error:
            raise ConversionError(f"{tokenizer_path}: not a sentencepiece model that can be read: {error}") from None
        return FillMask(model, Tokenizer(processor, hashlib.sha256(proto).hexdigest()))

    def encode(self, sentence: str) -> list[int]:
        """The ids of a sentence with [CLS] and [SEP]. [MASK] is the mask, other text beside it is cut as if a word
        stood there, as in training: no space sign where the sentence has no space."""
        first, *others = sentence.split(MASK_PIECE)
        ids = [self.tokenizer.cls_id, *self._pieces(first)]
        lead = len(self._pieces(_STANDING_IN))
        for part in others:
            ids += [self.tokenizer.mask_id, *self._pieces(_STANDING_IN + part)[lead:]]
        return [*ids, self.tokenizer.sep_id]

    def _pieces(self, text: str) -> list[int]:
        return [int(token) for token in self.tokenizer.encode([text])[0]]

    def batch(self, sentence: str) -> MaskedBatch:
        """The sentence as one row, to be predicted at each [MASK].

        Raises ConversionError for a sentence without [MASK], or longer than the model's positions.
        """
        token_ids = torch.tensor([self.encode(sentence)])
        masks = (token_ids[0] == self.tokenizer.mask_id).nonzero().flatten()
        if not len(masks):
            raise ConversionError(f"no {MASK_PIECE} in {sentence!r}; write it where a word is to be filled in")
        length, most = token_ids.size(1), self.model.config.max_position_embeddings
        if length > most:
            raise ConversionError(f"the sentence has {length} tokens, the model takes {most}; give a shorter one")
        return MaskedBatch(
            token_ids=token_ids,
            segment_ids=torch.ones_like(token_ids),
            position_ids=torch.arange(length)[None],
            predict_positions=masks,
            predict_ids=torch.zeros_like(masks),
            max_predictions_per_row=len(masks),
        )

    @torch.no_grad()
    def top(self, sentence: str, k: int = 5) -> list[list[tuple[str, float]]]:
        """For each [MASK] in order, the `k` likeliest pieces with their probabilities, the likeliest first.

        A piece that goes on with the word before it is written with ## in front. Each mask is filled as if the others
        stayed masked. Raises ConversionError as `batch` does.
        """
        probabilities = self.model.logits(self.batch(sentence)).softmax(-1)
        best = probabilities.masked_fill(~self._is_answer, -1.0).topk(min(k, int(self._is_answer.sum())))
        return [
            [(self._word(token), probability) for token, probability in zip(tokens, values, strict=True)]
            for tokens, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _word(self, token: int) -> str:
        text = self.tokenizer.piece(token).replace("▁", "")
        return (text or "▁") if self._starts_word[token] else "##" + text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, help="written by launch/convert.py --to huggingface")
    parser.add_argument("sentence", help="text with one or more [MASK]")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="words for each mask (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"--top {arguments.top}: give 1 or more")
    try:
        filled = FillMask.load(arguments.directory).top(arguments.sentence, arguments.top)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        masks = [[{"word": word, "probability": value} for word, value in candidates] for candidates in filled]
        print(json.dumps({"sentence": arguments.sentence, "masks": masks}))
        return 0
    for candidates in filled:
        print("   ".join(f"{word} {probability:.3f}" for word, probability in candidates))
    return 0


if __name__ == "__main__":
    sys.exit(main())
