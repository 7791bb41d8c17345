"""Fill [MASK] with a model: `python -m deberta_scale.convert.fill_mask MODEL "The [MASK] was very kind."`.

Uses the enhanced mask decoder the model was trained with, and needs no `transformers`.
"""

import argparse
import json
import sys
from pathlib import Path

import torch

from deberta_scale.batch import MaskedBatch
from deberta_scale.convert.formats import open_source
from deberta_scale.convert.huggingface import load_tokenizer
from deberta_scale.convert.source import ConversionError, model_on_meta
from deberta_scale.data.tokenizer import MASK_PIECE, SPECIAL, WORD_START, Tokenizer
from deberta_scale.model.pretraining import PretrainingModel


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
    def load(path: Path) -> "FillMask":
        """Open an exported directory, or anything else that launch/convert.py reads and that has a tokenizer.

        Raises ValueError (ConversionError, TokenizerError and others) naming the file that is missing, damaged or of
        another model.
        """
        source = open_source(path)
        if missing := source.missing():
            raise ConversionError(
                f"{path}: lacks {', '.join(missing[:3])}, without which masks cannot be filled; take a model that has"
                " its mask decoder"
            )
        tokenizer = load_tokenizer(source)
        if tokenizer is None:
            raise ConversionError(
                f"{path}: has no tokenizer (spm.model, or vocab.json and merges.txt); copy the model's own into it"
            )
        model = model_on_meta(source.config)
        model.load_state_dict(dict(source.weights), assign=True)
        return FillMask(model, tokenizer)

    def encode(self, sentence: str) -> list[int]:
        """The ids of a sentence with [CLS] and [SEP]. [MASK] is the mask, see `Tokenizer.encode_masked`."""
        return [self.tokenizer.cls_id, *self.tokenizer.encode_masked(sentence), self.tokenizer.sep_id]

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
        text = self.tokenizer.text_of(token)
        return (text or "▁") if self._starts_word[token] else "##" + text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="written by launch/convert.py, or a run, or a released model")
    parser.add_argument("sentence", help="text with one or more [MASK]")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="words for each mask (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()
    if arguments.top < 1:
        parser.error(f"--top {arguments.top}: give 1 or more")
    try:
        filled = FillMask.load(arguments.model).top(arguments.sentence, arguments.top)
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
