"""What is changed in a document, or the document left out for, before it is cut into tokens; and how much that was.

Every filter looks at one document alone, so that the result depends on neither the order of documents nor on who reads
them. They run in the order of the keys of `CleaningConfig`. What is compared between documents is in
`deduplication` and `near_duplicates`.
"""

import hashlib
import importlib
import inspect
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from data_prep.records import Document
from deberta_scale.config_data import ConfigError, Fraction, PositiveInt, Section

Language = Callable[[str], str]
"""A text, its paragraphs parted by line feeds, to the code of its language."""

UNITS = ("documents", "paragraphs", "characters")
"""What is counted of text, by everything that leaves some out."""
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufdd0-\ufdef\ufeff\ufffe\uffff]")
"""None beyond the first plane, where Python's expressions grow ten times slower."""
_FUNCTION_NAME = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class LanguageConfig(Section):
    """Keep the documents that a function of the user's finds to be of some languages."""

    callable: str
    """`package.module:function`, which must be importable: a function of a text, its paragraphs parted by line feeds,
    that returns a code. It must give the same code for the same text on every machine."""
    keep: Annotated[tuple[str, ...], Field(min_length=1)]
    """Codes, spelled as the function spells them."""

    @field_validator("callable")
    @classmethod
    def _names_a_function(cls, value: str) -> str:
        if not _FUNCTION_NAME.fullmatch(value):
            raise ValueError(f"{value!r} does not name a function; write it as package.module:function")
        return value


class CleaningConfig(Section):
    """All but the removal of control characters is off until it is asked for. Lengths are in characters (code points)
    of the cleaned paragraphs, the line feeds between them not counted."""

    remove_control_characters: bool = True
    """Take out what no text is written with: control characters (category Cc) but tab and line feed, the byte order
    mark U+FEFF, and the noncharacters of the first plane. Those that are white space (vertical tab, form feed, carriage
    return, U+001C to U+001F, U+0085) become a space, since they part words. Format characters (category Cf) stay:
    Persian and the scripts of India are spelled with the joiners U+200C and U+200D, emoji are composed with U+200D,
    Thai and Khmer part words with U+200B, Arabic and Hebrew need the marks of direction."""
    unicode_form: Literal["none", "NFC", "NFKC"] = "none"
    """NFC composes letters with their accents; NFKC also spells out ligatures, full-width letters, superscripts.
    sentencepiece's own normalisation is NFKC with changes of its own and comes later in any case."""
    min_paragraph_characters: Annotated[int, Field(ge=0)] = 0
    """Shorter paragraphs are left out of their documents."""
    max_repeated_paragraph_fraction: Fraction = 1.0
    """Leave out a document of whose paragraphs (lines) a larger share repeats an earlier one of the same document; 1
    leaves out none."""
    min_document_characters: Annotated[int, Field(ge=0)] = 0
    max_document_characters: PositiveInt | None = None
    """Longer documents are left out whole, not cut."""
    language: LanguageConfig | None = None

    def describe(self) -> dict[str, Any]:
        """For a plan: everything that decides what is left, the code of the language function included. Raises
        ConfigError when that cannot be imported."""
        described = self.model_dump(mode="json")
        if self.language is not None:
            described["language"]["source_sha256"] = source_digest(load_language(self.language.callable))
        return described

    @model_validator(mode="after")
    def _consistent(self) -> "CleaningConfig":
        longest = self.max_document_characters
        if longest is not None and longest < max(self.min_document_characters, self.min_paragraph_characters):
            raise ValueError(
                f"max_document_characters {longest} is below min_document_characters {self.min_document_characters} or"
                f" min_paragraph_characters {self.min_paragraph_characters}, so that nothing would be left"
            )
        return self


class Cleaner:
    """Cleans documents one by one, and counts.

    `counts` has `documents_in`, `paragraphs_in`, `characters_in` and the same three `_out`, and of each filter that is
    on, under `<filter>.`: `documents_dropped`, `paragraphs_dropped` (those of dropped documents too),
    `characters_dropped` (what a change took away as well; below zero where NFKC spelled out more), and of those that
    change text `documents_changed` and `paragraphs_changed`. In less dropped, over all filters, is out.
    """

    def __init__(self, config: CleaningConfig) -> None:
        """Raises ConfigError when the language function cannot be imported."""
        self.config = config
        self.counts: dict[str, int] = {f"{unit}_{end}": 0 for end in ("in", "out") for unit in UNITS}
        self._language = load_language(config.language.callable) if config.language else None
        self._filters: list[tuple[str, Callable[[Document], Document]]] = []
        self._add("control_characters", config.remove_control_characters, self._without_control, changes=True)
        self._add("unicode_form", config.unicode_form != "none", self._normalised, changes=True)
        self._add("paragraph_length", config.min_paragraph_characters > 1, self._long_paragraphs)
        self._add("repeated_paragraphs", config.max_repeated_paragraph_fraction < 1.0, self._unless_repetitive)
        has_length = config.min_document_characters > 1 or config.max_document_characters is not None
        self._add("document_length", has_length, self._of_right_length)
        self._add("language", config.language is not None, self._of_right_language)

    def clean(self, document: Document) -> Document | None:
        """What is left of a document; None when nothing is. A document that came without text is returned as it is and
        not counted, since no filter emptied it.

        Raises ConfigError when the language function fails or returns something other than a code.
        """
        if not document:
            return document
        characters = sum(map(len, document))
        self._count("in", document, characters)
        for name, cleaned_by in self._filters:
            cleaned = cleaned_by(document)
            if cleaned is document:
                continue
            left = sum(map(len, cleaned))
            self.counts[f"{name}.documents_dropped"] += not cleaned
            self.counts[f"{name}.paragraphs_dropped"] += len(document) - len(cleaned)
            self.counts[f"{name}.characters_dropped"] += characters - left
            if not cleaned:
                return None
            document, characters = cleaned, left
        self._count("out", document, characters)
        return document

    def _add(self, name: str, is_on: bool, method: Callable[[Document], Document], changes: bool = False) -> None:
        """Methods return the very document they were given when they have nothing to change in it."""
        if is_on:
            self._filters.append((name, method))
            self.counts |= {f"{name}.{unit}_dropped": 0 for unit in UNITS}
            self.counts |= {f"{name}.{unit}_changed": 0 for unit in UNITS[:2] if changes}

    def _count(self, end: str, document: Document, characters: int) -> None:
        for unit, amount in zip(UNITS, (1, len(document), characters), strict=True):
            self.counts[f"{unit}_{end}"] += amount

    def _without_control(self, document: Document) -> Document:
        if all(map(str.isprintable, document)):  # twice as fast as the expression, and true of most
            return document
        return self._changed(
            "control_characters",
            document,
            lambda paragraph: _CONTROL.sub(lambda found: " " if found[0].isspace() else "", paragraph),
        )

    def _normalised(self, document: Document) -> Document:
        form = self.config.unicode_form
        if form == "none" or all(map(str.isascii, document)):
            return document
        return self._changed("unicode_form", document, lambda paragraph: unicodedata.normalize(form, paragraph))

    def _changed(self, name: str, document: Document, change: Callable[[str], str]) -> Document:
        """The document with every paragraph changed; those of which nothing but white space is left are left out."""
        changed = [change(paragraph) for paragraph in document]
        num_changed = sum(new != old for new, old in zip(changed, document, strict=True))
        if not num_changed:
            return document
        self.counts[f"{name}.documents_changed"] += 1
        self.counts[f"{name}.paragraphs_changed"] += num_changed
        return [stripped for paragraph in changed if (stripped := paragraph.strip())]

    def _long_paragraphs(self, document: Document) -> Document:
        shortest = self.config.min_paragraph_characters
        kept = [paragraph for paragraph in document if len(paragraph) >= shortest]
        return document if len(kept) == len(document) else kept

    def _unless_repetitive(self, document: Document) -> Document:
        repeated = len(document) - len(set(document))
        return [] if repeated / len(document) > self.config.max_repeated_paragraph_fraction else document

    def _of_right_length(self, document: Document) -> Document:
        characters, longest = sum(map(len, document)), self.config.max_document_characters
        fits = self.config.min_document_characters <= characters and (longest is None or characters <= longest)
        return document if fits else []

    def _of_right_language(self, document: Document) -> Document:
        assert self._language is not None and self.config.language is not None
        name = self.config.language.callable
        try:
            code: Any = self._language("\n".join(document))
        except Exception as error:
            raise ConfigError(
                f"cleaning.language.callable {name!r} failed with {type(error).__name__}: {error}; on the document that"
                f" begins {document[0][:60]!r}"
            ) from error
        if not isinstance(code, str):
            raise ConfigError(
                f"cleaning.language.callable {name!r} returned {code!r}; it must return a code such as 'en', also for"
                " text it cannot tell"
            )
        return document if code in self.config.language.keep else []


def load_language(name: str) -> Language:
    """The function that `package.module:function` names. Raises ConfigError saying what is missing."""
    module_name, _, function_name = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"cleaning.language.callable {name!r}: cannot import {module_name} ({error}); install it, or name the"
            " directory it lies in in PYTHONPATH"
        ) from error
    function: Any = getattr(module, function_name, None)
    if not callable(function):
        functions = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise ConfigError(
            f"cleaning.language.callable {name!r}: {module_name} has no function {function_name}; it has"
            f" {', '.join(functions) or 'none'}"
        )
    language: Language = function
    return language


def source_digest(function: Language) -> str | None:
    """The sha256 of the file that a function, or the class of a callable object, is written in; None of one that is in
    no file. What the file imports is not in it."""
    path = getattr(inspect.getmodule(inspect.unwrap(function)), "__file__", None)
    is_file = path is not None and Path(path).is_file()
    return hashlib.sha256(Path(path).read_bytes()).hexdigest() if is_file else None


def sum_counts(many: Iterable[dict[str, int]]) -> dict[str, int]:
    """The counts of several units together, in the order of the keys."""
    total: Counter[str] = Counter()
    for counts in many:
        total.update(counts)
    return dict(sorted(total.items()))


def by_filter(counts: dict[str, int]) -> dict[str, dict[str, int]]:
    """Counts as `Cleaner` keeps them, by the name of the filter; those of all documents under `all`."""
    nested: dict[str, dict[str, int]] = {"all": {}}
    for key, count in counts.items():
        name, _, what = key.rpartition(".")
        nested.setdefault(name or "all", {})[what] = count
    return nested
