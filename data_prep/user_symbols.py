"""Pieces that the user wants in a vocabulary and that are never cut, such as `<ent>`: which ones can be had."""

import re
import unicodedata

import sentencepiece

from deberta_scale.data.tokenizer import MASK_PIECE, SPECIAL_PIECES
from deberta_scale.data.tokenizer_sentencepiece import SPACE_SIGN

NORMALISATION = "nmt_nfkc"
"""sentencepiece's own, of the released tokenizers."""
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")


def check_user_symbols(symbols: tuple[str, ...]) -> None:
    """Raises ValueError naming the first symbol that would not be found in every text that has it, and why."""
    for number, symbol in enumerate(symbols):
        if problem := _problem_of(symbol, symbols[:number]):
            raise ValueError(f"--user-symbols: {symbol!r} {problem}")


def _problem_of(symbol: str, before: tuple[str, ...]) -> str | None:
    if not symbol:
        return "is empty; leave it out"
    if symbol in before:
        return "is given twice; leave one out"
    if symbol in (*SPECIAL_PIECES, MASK_PIECE):
        return "is a special piece, which every vocabulary has; leave it out"
    if SPACE_SIGN in symbol or any(map(str.isspace, symbol)):
        return "holds white space, or the sign for it; paragraphs are parted there, so give its words one by one"
    if _BYTE_PIECE.search(symbol):
        return "spells a byte piece, <0x00> to <0xFF>; give another spelling"
    if not symbol.isprintable() and any(unicodedata.category(character) in ("Cc", "Cs") for character in symbol):
        return "holds a control character or half a surrogate pair; leave that out"
    if unicodedata.category(symbol[0]).startswith("M"):
        return "begins with a combining mark, which belongs to the letter before it; leave that out"
    if (normalised := _normalise(symbol)) != symbol:
        return f"is {normalised!r} after Unicode normalisation (NFKC), as every text is; give that"
    return None


def _normalise(text: str) -> str:
    normalizer = sentencepiece.SentencePieceNormalizer(
        rule_name=NORMALISATION, add_dummy_prefix=False, remove_extra_whitespaces=False, escape_whitespaces=False
    )
    return str(normalizer.normalize(text))
