"""Train a sentencepiece unigram tokenizer: `train_tokenizer.py --input PATH... --vocab-size N --out DIR`.

Or on the sources of a data description, each giving its share: `train_tokenizer.py --data YAML --vocab-size N`, which
writes the directory that the description names as its `tokenizer`.

Writes DIR/spm.model and DIR/metadata.json. The ids are those of the released V2/V3 tokenizers: [PAD] 0, [CLS] 1,
[SEP] 2, [UNK] 3, then the bytes that stand in for unknown characters, then the pieces; [MASK] is N, after the last.
User symbols take the ids from 4 on, in the order given, and the bytes follow them.
"""

import argparse
import hashlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import sentencepiece

from data_prep.command import positive_int, report, run
from data_prep.inputs import InputFile, Reading, add_input_arguments, find_inputs, reading_of, refuse_beside_data
from data_prep.sources import load_description
from data_prep.text_sample import TextSource, describe_samples, described_sources, sample_sources
from data_prep.user_symbols import NORMALISATION, check_user_symbols
from deberta_scale.data.tokenizer import CLS_ID, PAD_ID, SEP_ID, SPECIAL_PIECES, UNK_ID, Tokenizer
from deberta_scale.durable import published_directory

DEFAULT_MAX_INPUT_BYTES = 200_000_000
DEFAULT_CHARACTER_COVERAGE = 0.9999
_NUM_BYTE_PIECES = 256
_NUM_THREADS = 8
"""Fixed, since the order of sums, and so the pieces, may depend on it."""
_NO_LIMIT = 2**30
"""Of bytes in a paragraph: sentencepiece would silently leave out those over 4192."""


class VocabularySizeError(ValueError):
    """A vocabulary size that the text does not allow."""


def train(files: list[InputFile], reading: Reading, vocab_size: int, out: Path, **options: Any) -> dict[str, Any]:
    """`train_on` the text of some files, with the options of that."""
    return train_on([TextSource("", files, reading)], vocab_size, out, **options)


def train_on(
    sources: list[TextSource],
    vocab_size: int,
    out: Path,
    *,
    max_input_bytes: int = DEFAULT_MAX_INPUT_BYTES,
    character_coverage: float = DEFAULT_CHARACTER_COVERAGE,
    user_symbols: tuple[str, ...] = (),
    verbose: bool = False,
) -> dict[str, Any]:
    """Train on (a sample of) the text and publish the tokenizer directory. Returns its metadata.

    The sample takes paragraphs from everywhere in the cleaned input, up to `max_input_bytes` of text, of each source
    its share; it and the result are the same in every run. `user_symbols` are pieces that are never cut. Raises
    InputError, VocabularySizeError, or ValueError when `out` is in use or a symbol cannot be had.
    """
    check_user_symbols(user_symbols)
    smallest = len(SPECIAL_PIECES) + _NUM_BYTE_PIECES + len(user_symbols)
    if user_symbols and vocab_size <= smallest:
        raise VocabularySizeError(
            f"--vocab-size {vocab_size} is too small: {_what_must_be_in(user_symbols)} alone are {smallest}; give more"
            " than that, and as many again as the text has characters"
        )
    with published_directory(out) as partial:
        samples = sample_sources(sources, max_input_bytes)
        paragraphs = [paragraph for each in samples for paragraph in each.paragraphs()]
        described = describe_samples(sources, samples)
        training = {
            "model_type": "unigram",
            "byte_fallback": True,
            "character_coverage": character_coverage,
            "user_symbols": list(user_symbols),
            "max_input_bytes": max_input_bytes,
            **({"inputs": described[""]["inputs"]} if "" in described else {"sources": described}),
            "paragraphs": len(paragraphs),
            "bytes": sum(each.num_bytes for each in samples),
        }
        model = _train_model(paragraphs, vocab_size, character_coverage, user_symbols, verbose)
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        tokenizer = Tokenizer(processor, hashlib.sha256(model).hexdigest(), training=training)
        for name, content in tokenizer.files().items():
            (partial / name).write_bytes(content)
    return tokenizer.metadata()


def _train_model(
    paragraphs: list[str], vocab_size: int, character_coverage: float, user_symbols: tuple[str, ...], verbose: bool
) -> bytes:
    model = io.BytesIO()
    pad_piece, cls_piece, sep_piece, unk_piece = SPECIAL_PIECES
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(paragraphs),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocab_size,
            character_coverage=character_coverage,
            normalization_rule_name=NORMALISATION,
            byte_fallback=True,
            user_defined_symbols=list(user_symbols),
            pad_id=PAD_ID,
            bos_id=CLS_ID,
            eos_id=SEP_ID,
            unk_id=UNK_ID,
            pad_piece=pad_piece,
            bos_piece=cls_piece,
            eos_piece=sep_piece,
            unk_piece=unk_piece,
            max_sentence_length=_NO_LIMIT,
            num_threads=_NUM_THREADS,
            minloglevel=0 if verbose else 2,
        )
    except RuntimeError as error:
        raise _explained(str(error), vocab_size, user_symbols) from None
    return model.getvalue()


def _what_must_be_in(user_symbols: tuple[str, ...]) -> str:
    symbols = f", {len(user_symbols)} user symbols" if user_symbols else ""
    return f"{_NUM_BYTE_PIECES} bytes, {len(SPECIAL_PIECES)} special pieces{symbols}"


def _explained(message: str, vocab_size: int, user_symbols: tuple[str, ...]) -> VocabularySizeError:
    if found := re.search(r"smaller than required_chars\D*\d+ vs (\d+)", message):
        return VocabularySizeError(
            f"--vocab-size {vocab_size} is too small: {_what_must_be_in(user_symbols)} and the characters of this"
            f" text need {found[1]}; give at least that, or lower --character-coverage"
        )
    if found := re.search(r"Vocabulary size too high.*<= (\d+)", message):
        return VocabularySizeError(
            f"--vocab-size {vocab_size} is too large for this much text; give at most {found[1]}, or more text"
        )
    return VocabularySizeError(f"sentencepiece cannot train {vocab_size} pieces on this text: {message}")


def _coverage(text: str) -> float:
    value = float(text)
    if not 0.98 <= value <= 1.0:  # what sentencepiece takes
        raise argparse.ArgumentTypeError(f"{text} is not between 0.98 and 1")
    return value


def _what_and_where(arguments: argparse.Namespace) -> tuple[list[TextSource], Path]:
    """What to train on and the directory to write. Raises ValueError when --input and --data are both or neither given,
    or options with no effect."""
    if arguments.data is None:
        if not arguments.input or arguments.out is None:
            raise ValueError("give --input and --out, or --data")
        return [TextSource("", find_inputs(arguments.input), reading_of(arguments))], arguments.out
    refuse_beside_data(arguments, {})
    description = load_description(arguments.data)
    return described_sources(description), arguments.out or description.tokenizer


def _summary(metadata: dict[str, Any], out: Path) -> list[str]:
    training = metadata["training"]
    lines = [_source_summary(name, found, training) for name, found in training.get("sources", {}).items()]
    return [
        *lines,
        f"wrote {out}: {metadata['pieces']:,} pieces, [MASK] is {metadata['mask_id']}, from"
        f" {training['paragraphs']:,} paragraphs ({training['bytes'] / 1e6:.1f} MB)",
        f"a model for it needs model.vocab_size {metadata['vocabulary_size']} or more",
    ]


def _source_summary(name: str, found: dict[str, Any], training: dict[str, Any]) -> str:
    if not found["share"]:
        return f"{name}: not read, its weight is 0"
    part = found["bytes"] / training["bytes"]
    line = f"{name}: {found['paragraphs']:,} paragraphs, {found['bytes'] / 1e6:.1f} MB, {part:.2%} of the sample"
    if not found["all_of_it"]:
        return f"{line} (share {found['share']:.2%})"
    goes_on = "; the others give more" if part < found["share"] and part < 1.0 else ""
    return f"{line} (share {found['share']:.2%}): all the text it has{goes_on}"


def _next(arguments: argparse.Namespace, out: Path) -> str:
    command = "next: python data_prep/tokenize_corpus.py"
    if arguments.data is None:
        return f"{command} --input ... --tokenizer {out} --out SHARDS"
    named = "" if arguments.out is None else f", when that says tokenizer: {out}"
    return f"{command} --data {arguments.data} --out SHARDS{named}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_input_arguments(parser, required=False)
    parser.add_argument(
        "--data",
        type=Path,
        metavar="YAML",
        help="instead of --input: a description of several sources, each of which gives its share of the text, cleaned"
        " as it says, but with its duplicates; see configs/data/example.yaml. What a source with too little text leaves"
        " goes to the others",
    )
    parser.add_argument(
        "--vocab-size", type=positive_int, required=True, help="pieces of the model, [MASK] not counted"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="directory to write; must not exist or be empty (default: with --data what it names as its tokenizer)",
    )
    parser.add_argument(
        "--max-input-bytes",
        type=positive_int,
        default=DEFAULT_MAX_INPUT_BYTES,
        help="train on paragraphs of at most this much text, taken from everywhere (default: %(default)s)",
    )
    parser.add_argument(
        "--character-coverage",
        type=_coverage,
        default=DEFAULT_CHARACTER_COVERAGE,
        help="share of the text's characters that get pieces; bytes stand in for the others (default: %(default)s)",
    )
    parser.add_argument(
        "--user-symbols",
        nargs="+",
        default=[],
        metavar="SYMBOL",
        help="pieces that are never cut, for instance '<ent>'; they count in --vocab-size. Masking takes one together"
        " with the word or the space before it. Text is then not cut word by word, and preparing it takes longer",
    )
    parser.add_argument("--verbose", action="store_true", help="show sentencepiece's own log")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    arguments = parser.parse_args()

    def work() -> None:
        sources, out = _what_and_where(arguments)
        if not arguments.json:
            num_files = sum(len(source.files) for source in sources)
            print(f"training {arguments.vocab_size:,} unigram pieces on {num_files} file(s)", flush=True)
        metadata = train_on(
            sources,
            arguments.vocab_size,
            out,
            max_input_bytes=arguments.max_input_bytes,
            character_coverage=arguments.character_coverage,
            user_symbols=tuple(arguments.user_symbols),
            verbose=arguments.verbose,
        )
        report(arguments.json, metadata | {"out": str(out)}, [*_summary(metadata, out), _next(arguments, out)])

    return run(work)


if __name__ == "__main__":
    sys.exit(main())
