"""Which scripts a text is written in, what its words are, and how text from anywhere is put before eyes.

A script is no language: Latin says neither English nor French. But a script that should not be there, or one that is
missing, is seen at once, and it needs no model that guesses.
"""

import re
import sys
import unicodedata
from collections import Counter
from functools import cache

from deberta_scale.data.tokenizer_pieces import UNSPACED_RANGES

OTHER = "other"
"""Letters of no script of their own, as the modifier letter apostrophe, and those that Python has no name of."""
_OF_SEVERAL_WORDS = (
    "BASSA VAH|CAUCASIAN ALBANIAN|DIVES AKURU|GUNJALA GONDI|HANIFI ROHINGYA|IMPERIAL ARAMAIC|INSCRIPTIONAL PAHLAVI"
    "|INSCRIPTIONAL PARTHIAN|KAYAH LI|LINEAR A|LINEAR B|MASARAM GONDI|MEETEI MAYEK|MENDE KIKAKUI|MEROITIC CURSIVE"
    "|MEROITIC HIEROGLYPHIC|NEW TAI LUE|NYIAKENG PUACHUE HMONG|OL CHIKI|OLD CHINESE|OLD HUNGARIAN|OLD ITALIC"
    "|OLD NORTH ARABIAN|OLD PERMIC|OLD PERSIAN|OLD SOGDIAN|OLD SOUTH ARABIAN|OLD TURKIC|OLD UYGHUR|PAHAWH HMONG"
    "|PAU CIN HAU|PSALTER PAHLAVI|SORA SOMPENG|SYLOTI NAGRI|TAI LE|TAI THAM|TAI VIET|WARANG CITI|ZANABAZAR SQUARE"
)
_SCRIPT = re.compile(rf"(?:{_OF_SEVERAL_WORDS}|[A-Z-]+)\b")
"""What the name of a letter begins with."""
_OWN_NAMES = {
    **dict.fromkeys(("CJK", "IDEOGRAPHIC", "OLD CHINESE"), "Han"),
    **dict.fromkeys(("HIRAGANA", "KATAKANA", "KATAKANA-HIRAGANA", "HENTAIGANA", "HALFWIDTH"), "Kana"),
    **dict.fromkeys(("ROMAN", "TURNED"), "Latin"),
    **dict.fromkeys(("CARON", "MASU", "MODIFIER", "VEDIC", "VERTICAL"), OTHER),
}
_HIDDEN = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff\ud800-\udfff]"
)
"""What steers a terminal or turns the direction of the text around it, and what XML or UTF-8 cannot hold. Joiners stay:
Persian and Hindi are written with them."""

_JOINERS = "\u200c\u200d"


@cache
def script_of(character: str) -> str | None:
    """`Latin`, `Cyrillic`, `Han`, `Kana`, ... of a letter; None of what is no letter.

    Read from the character's Unicode name; variants (full width, mathematical, ligatures) count as what they vary.
    """
    if not unicodedata.category(character).startswith("L"):
        return None
    variants = unicodedata.normalize("NFKC", character)
    plain = next((c for c in variants if unicodedata.category(c).startswith("L")), character)
    found = _SCRIPT.match(unicodedata.name(plain, ""))
    return _OWN_NAMES.get(found[0], found[0].title()) if found else OTHER


def scripts_of(text: str) -> Counter[str]:
    """How many letters of each script a text has."""
    letters: Counter[str] = Counter()
    for character, times in Counter(text).items():
        if script := script_of(character):
            letters[script] += times
    return letters


def words_of(text: str) -> list[str]:
    """The words of a text, without what stands between them; of scripts that are written without spaces the characters.
    Marks and joiners belong to the letter before them, as in Unicode's rules for words (UAX #29)."""
    return _word_pattern().findall(text)


@cache
def _word_pattern() -> re.Pattern[str]:
    marks = "".join(c for c in map(chr, range(sys.maxunicode + 1)) if unicodedata.category(c).startswith("M"))
    unspaced = "".join(f"{chr(first)}-{chr(last)}" for first, last in UNSPACED_RANGES)
    letter, following = rf"[^\W{unspaced}]", f"[{marks}{_JOINERS}]"
    ascii_alone = r"[0-9A-Z_a-z]++(?![^\0-\x7f])"  # only for speed: four times that of the general rule
    return re.compile(rf"{ascii_alone}|(?=\w)(?:{letter}+(?:{following}+{letter}*)*|[{unspaced}]{following}*)")


def visible(text: str) -> str:
    """The text with its hidden control characters written out, as `<U+202E>`; tabs and line feeds stay."""
    return _HIDDEN.sub(lambda found: f"<U+{ord(found[0]):04X}>", text)
