"""The files of a tokenizer → its pieces and its added tokens.

Ours is `metadata.json` beside `spm.model`, or beside `vocab.json` and `merges.txt`. Without `metadata.json` it is one
as released or as `transformers` saves it: `spm.model` (V2, V3), or `vocab.json` and `merges.txt`, `bpe_encoder.bin` or
`tokenizer.json` (V1). Added tokens then are those of `tokenizer.json` or `added_tokens.json`.
"""

import hashlib
import json
import pickle
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece

from deberta_scale.data.tokenizer_byte_pair import MERGES_FILE, VOCABULARY_FILE, BytePairs, Merges
from deberta_scale.data.tokenizer_pieces import (
    MASK_PIECE,
    SPECIAL_PIECES,
    Pieces,
    TokenizerError,
    special_pieces_problem,
)
from deberta_scale.data.tokenizer_sentencepiece import MODEL_FILE, SentencePieces

FORMAT_VERSION = 1
METADATA_FILE = "metadata.json"
OFFICIAL_FILE, FAST_FILE, ADDED_TOKENS_FILE = "bpe_encoder.bin", "tokenizer.json", "added_tokens.json"
_RELEASED = f"{MODEL_FILE}; {VOCABULARY_FILE} and {MERGES_FILE}; {OFFICIAL_FILE}; or {FAST_FILE}"


@dataclass(frozen=True)
class Opened:
    """What a directory holds."""

    pieces: Pieces
    model_file: str
    """The name of the file that errors are about."""
    added_tokens: tuple[str, ...] = ()
    metadata: dict[str, Any] | None = field(default=None)
    """None for a directory as released."""


def identity(model_sha256: str, added_tokens: tuple[str, ...]) -> str:
    """The sha256 that manifests know a tokenizer by: the model's own, or over it and the added tokens."""
    if not added_tokens:
        return model_sha256
    return hashlib.sha256(json.dumps([model_sha256, *added_tokens]).encode()).hexdigest()


def open_directory(directory: Path) -> Opened:
    """Read the files. Raises TokenizerError naming the one that is missing, damaged or not what it should be."""
    if not (directory / METADATA_FILE).is_file():
        return _open_released(directory)
    metadata = _read_metadata(directory / METADATA_FILE)
    added_tokens = tuple(metadata["added_tokens"])
    if metadata["kind"] == BytePairs.kind:
        pieces: Pieces = _read_vocabulary_and_merges(directory)
        _check_identity(directory, VOCABULARY_FILE, pieces.sha256, added_tokens, metadata)
        return Opened(pieces, VOCABULARY_FILE, added_tokens, metadata)
    model = _read_bytes(directory / MODEL_FILE)
    sha256 = hashlib.sha256(model).hexdigest()
    _check_identity(directory, MODEL_FILE, sha256, added_tokens, metadata)
    made_by, here = metadata.get("sentencepiece_version"), sentencepiece.__version__
    if made_by != here:
        raise TokenizerError(
            f"{directory}: made with sentencepiece {made_by}, installed is {here}, which cuts some texts"
            f" differently; pip install sentencepiece=={made_by}, or train the tokenizer again"
        )
    return Opened(_sentencepieces(directory / MODEL_FILE, model), MODEL_FILE, added_tokens, metadata)


def _open_released(directory: Path) -> Opened:
    def has(*names: str) -> bool:
        return all((directory / name).is_file() for name in names)

    if has(MODEL_FILE):
        pieces: Pieces = _sentencepieces(directory / MODEL_FILE, _read_bytes(directory / MODEL_FILE))
        name = MODEL_FILE
    elif has(VOCABULARY_FILE, MERGES_FILE):
        pieces, name = _read_vocabulary_and_merges(directory), VOCABULARY_FILE
    elif has(OFFICIAL_FILE):
        pieces, name = _read_official(directory / OFFICIAL_FILE), OFFICIAL_FILE
    elif has(FAST_FILE):
        pieces, name = _read_fast(directory / FAST_FILE), FAST_FILE
    else:
        raise TokenizerError(
            f"{directory / METADATA_FILE}: cannot be read (No such file or directory); a tokenizer directory is what"
            f" data_prep/train_tokenizer.py writes, or a released one with {_RELEASED}"
        )
    return Opened(pieces, name, _released_added_tokens(directory, pieces))


def _read_metadata(path: Path) -> dict[str, Any]:
    metadata = _read_json(path)
    if not isinstance(metadata, dict) or metadata.get("format_version") != FORMAT_VERSION:
        raise TokenizerError(f"{path}: not the metadata of a tokenizer of format version {FORMAT_VERSION}")
    metadata = {"kind": SentencePieces.kind, "added_tokens": []} | metadata  # older ones say neither
    if metadata["kind"] not in (SentencePieces.kind, BytePairs.kind):
        raise TokenizerError(
            f"{path}: kind is {metadata['kind']!r}; known are {SentencePieces.kind!r} and {BytePairs.kind!r}"
        )
    tokens = metadata["added_tokens"]
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        raise TokenizerError(f"{path}: added_tokens is {tokens!r}, not a list of strings")
    return metadata


def _check_identity(
    directory: Path, name: str, model_sha256: str, added_tokens: tuple[str, ...], metadata: dict[str, Any]
) -> None:
    sha256 = identity(model_sha256, added_tokens)
    if metadata.get("sha256") != sha256:
        with_tokens = f" with the added_tokens of {METADATA_FILE}" if added_tokens else ""
        raise TokenizerError(
            f"{directory / name}: its sha256{with_tokens} is {sha256[:16]}..., {METADATA_FILE} says"
            f" {str(metadata.get('sha256'))[:16]}...; it was changed or damaged, copy the directory again"
        )


def _sentencepieces(path: Path, model: bytes) -> SentencePieces:
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise TokenizerError(f"{path}: not a sentencepiece model ({error})") from None
    first = [processor.id_to_piece(i) for i in range(min(len(SPECIAL_PIECES), processor.piece_size()))]
    if problem := special_pieces_problem(first):
        raise TokenizerError(f"{path}: {problem}")
    return SentencePieces(processor, hashlib.sha256(model).hexdigest())


def _read_vocabulary_and_merges(directory: Path) -> BytePairs:
    path = directory / VOCABULARY_FILE
    ids = _read_json(path)
    merges_path = directory / MERGES_FILE
    try:
        lines = _read_bytes(merges_path).decode().split("\n")
    except UnicodeDecodeError:
        raise TokenizerError(f"{merges_path}: not UTF-8; copy it again") from None
    merges = [line.rstrip("\r") for line in lines if line.strip() and not line.startswith("#version")]
    return _byte_pairs(ids, merges, path)


def _read_official(path: Path) -> BytePairs:
    """`bpe_encoder.bin` of the official release: `encoder` gives GPT-2's id of each piece, `vocab` the merges, and
    `dict_map` the order of GPT-2's ids, as text, that sets ours; [MASK] is appended (official gpt2_tokenizer.py)."""
    import torch  # slow to import, and needed for nothing else

    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
        pieces = {str(number): piece for piece, number in content["encoder"].items()}
        words = dict.fromkeys([*SPECIAL_PIECES, *(word for word, _ in content["dict_map"]), MASK_PIECE])
        ids = {pieces.get(word, word): number for number, word in enumerate(words)}
        merges = [tuple(merge) for merge in content["vocab"]]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise TokenizerError(
            f"{path}: not the vocabulary of the official release, a torch file with dict_map, vocab and encoder"
            f" ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"
        ) from None
    return _byte_pairs(ids, merges, path)


def _read_fast(path: Path) -> BytePairs:
    content = _read_json(path)
    model = content.get("model") if isinstance(content, dict) else None
    before = content.get("pre_tokenizer") if isinstance(content, dict) else None
    if not isinstance(model, dict) or "merges" not in model or not before or "ByteLevel" not in json.dumps(before):
        kind = model.get("type") if isinstance(model, dict) else None
        raise TokenizerError(
            f"{path}: a tokenizer of type {kind}, not byte-level BPE; to use a V2 or V3 model put its {MODEL_FILE}"
            " beside it"
        )
    return _byte_pairs(model.get("vocab"), model["merges"], path)


def _byte_pairs(ids: Any, merges: list[Any], path: Path) -> BytePairs:
    if not isinstance(ids, dict) or not all(isinstance(number, int) for number in ids.values()):
        raise TokenizerError(f"{path}: not a vocabulary, an object that gives each piece its id")
    pairs: Merges = []
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else list(merge)
        if len(parts) != 2:
            raise TokenizerError(f"{path}: the merge {merge!r} is not a pair of pieces")
        pairs.append((parts[0], parts[1]))
    return BytePairs(ids, pairs, str(path))


def _released_added_tokens(directory: Path, pieces: Pieces) -> tuple[str, ...]:
    """Tokens that `transformers` added after [MASK], in the order of their ids."""
    path = directory / FAST_FILE
    if path.is_file():
        content = _read_json(path)
        entries = content.get("added_tokens") if isinstance(content, dict) else None
    elif (directory / ADDED_TOKENS_FILE).is_file():
        path = directory / ADDED_TOKENS_FILE
        content = _read_json(path)
        entries = [{"content": token, "id": number} for token, number in content.items()]
    else:
        return ()
    try:
        ids = {int(entry["id"]): str(entry["content"]) for entry in entries or []}
    except (TypeError, KeyError, ValueError, AttributeError):
        raise TokenizerError(f"{path}: its added tokens have no id or content") from None
    mask_ids = [number for number, token in ids.items() if token == MASK_PIECE]
    if mask_ids and mask_ids != [pieces.mask_id]:
        raise TokenizerError(f"{path}: [MASK] is {mask_ids[0]}, the vocabulary beside it gives {pieces.mask_id}")
    first = max(pieces.size, pieces.mask_id + 1)
    added = sorted(number for number in ids if number >= first)
    if added != list(range(first, first + len(added))):
        raise TokenizerError(f"{path}: the ids of its added tokens are {added}; they must follow {first - 1}, the last")
    return tuple(ids[number] for number in added)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TokenizerError(
            f"{path}: cannot be read ({error.strerror}); a tokenizer directory is what"
            " data_prep/train_tokenizer.py writes"
        ) from None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(_read_bytes(path).decode())
    except ValueError as error:
        raise TokenizerError(f"{path}: not valid JSON ({error})") from None
