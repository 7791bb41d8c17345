"""Compiled parts of word_cutting: the tree of a model's pieces, the table of words, and cutting text by them.

A text is bytes of UTF-8 in which a space begins each word, where the model's own spelling has a space sign.
"""

from typing import NamedTuple

import numba
import numpy as np

MAX_WORD_BYTES = 96
"""Longer ones are left to sentencepiece: the sentences of scripts without spaces, mostly."""
_SPACE = ord(" ")
_HASH_START, _HASH_FACTOR = np.uint64(0xCBF29CE484222325), np.uint64(0x100000001B3)
_ROUNDING = 2.0**-24
"""Of a float32 sum, relative."""


class Strings(NamedTuple):
    """Byte strings, numbered as they came, found by their hashes."""

    slots: np.ndarray
    """[a power of two] int32: a number + 1, or 0; a string that finds its slot taken lies in one of the next."""
    hashes: np.ndarray
    """[C] uint64"""
    starts: np.ndarray
    """[C + 1] int64: in `content`."""
    content: np.ndarray
    """uint8: the strings, back to back."""
    count: np.ndarray
    """[1] int64"""


class Pieces(NamedTuple):
    """A tree of their bytes, as a double array: node 0 is the empty beginning."""

    nodes: np.ndarray
    """[N, 2] int32: (where the nodes that follow begin, the node before), each -1 where there is none. The one that
    follows with byte b lies b places behind that beginning, if it has this node before it."""
    pieces: np.ndarray
    """[N] int32: which piece ends here, or -1."""
    ids: np.ndarray
    """[pieces] int32"""
    scores: np.ndarray
    """[pieces] float64, none above 0."""


class Words(NamedTuple):
    """Words with their likeliest cuts."""

    strings: Strings
    id_starts: np.ndarray
    """[C + 1] int64: in `ids`."""
    ids: np.ndarray
    """int32"""
    costs: np.ndarray
    """[C] float64: the scores of the pieces, without their sign, added up."""
    largest_safe_costs: np.ndarray
    """[C] float64: up to which cost of a text, this word counted, rounding cannot make another cut of it likelier;
    below 0 for a word with a character that has no piece."""


class Search(NamedTuple):
    """For each place in a word, the two likeliest ways there."""

    best: np.ndarray
    second: np.ndarray
    """[places] float64"""
    starts: np.ndarray
    pieces: np.ndarray
    """[places] int64: of the last piece of the likeliest way."""


def new_words(capacity: int) -> Words:
    """An empty table; the capacity is a power of two."""
    slots, starts, count = np.zeros(2 * capacity, np.int32), np.zeros(capacity + 1, np.int64), np.zeros(1, np.int64)
    strings = Strings(slots, np.empty(capacity, np.uint64), starts, np.empty(16 * capacity, np.uint8), count)
    id_starts, ids = np.zeros(capacity + 1, np.int64), np.empty(4 * capacity, np.int32)
    return Words(strings, id_starts, ids, *np.empty((2, capacity)))


def new_search() -> Search:
    """Memory to cut words with."""
    places = MAX_WORD_BYTES + 1
    return Search(*np.empty((2, places)), *np.empty((2, places), np.int64))


@numba.njit(cache=True)
def tree_of(content: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # pragma: no cover - compiled
    """`nodes` and `pieces` of the strings in `content`, sorted and back to back, of which `ends` [C] are the ends."""
    nodes, pieces = np.full((1024, 2), -1, np.int32), np.full(1024, -1, np.int32)
    most, last_base = len(content) + 1, 0
    offsets, depths = np.zeros(most, np.int32), np.zeros(most, np.int32)
    below, above = np.zeros(most, np.int32), np.zeros(most, np.int32)
    above[0] = len(ends)  # strings below[n] .. above[n] - 1 begin with the bytes of node n, which lies at offsets[n]
    nodes[0, 1] = 0
    labels = np.empty(256, np.int32)
    node, count, first_free = 0, 1, 1
    while node < count:
        string, depth, num_labels = below[node], depths[node], 0
        while string < above[node]:
            start = ends[string - 1] if string else 0
            if ends[string] - start == depth:
                pieces[offsets[node]] = string
                string += 1
                continue
            label = content[start + depth]
            if not num_labels or labels[num_labels - 1] != label:
                labels[num_labels], below[count + num_labels] = label, string
                num_labels += 1
            string += 1
            above[count + num_labels - 1] = string
        if num_labels:
            while first_free < len(nodes) and nodes[first_free, 1] >= 0:
                first_free += 1
            base, tries = max(1, first_free - labels[0]), 0
            while True:
                while base + 256 > len(nodes):
                    nodes = np.concatenate((nodes, np.full_like(nodes, -1)))
                    pieces = np.concatenate((pieces, np.full_like(pieces, -1)))
                if _are_free(nodes, base, labels, num_labels):
                    break
                base += 1
                tries += 1
            if tries > 64:  # where so much is taken the search would take ever longer
                first_free += 16
            last_base = max(last_base, base)
            nodes[offsets[node], 0] = base
            for number in range(num_labels):
                offsets[count], depths[count] = base + labels[number], depth + 1
                nodes[offsets[count], 1] = offsets[node]
                count += 1
        node += 1
    used = last_base + 256  # whoever reads looks for any byte behind a base
    return nodes[:used].copy(), pieces[:used].copy()


@numba.njit(cache=True)
def _are_free(nodes: np.ndarray, base: int, labels: np.ndarray, num_labels: int) -> bool:  # pragma: no cover
    for number in range(num_labels):  # noqa: SIM110 - compiled faster than all()
        if nodes[base + labels[number], 1] >= 0:
            return False
    return True


@numba.njit(cache=True)
def _slot_of(strings: Strings, content: np.ndarray, start: int, end: int, key: np.uint64) -> int:  # pragma: no cover
    """Where content[start:end] with the hash `key` lies, or would lie."""
    slot = np.int64((key ^ (key >> np.uint64(32))) & np.uint64(len(strings.slots) - 1))
    while True:
        number = strings.slots[slot] - 1
        if number < 0:
            return slot
        if strings.hashes[number] == key and strings.starts[number + 1] - strings.starts[number] == end - start:
            first = strings.starts[number]
            same = 0
            while same < end - start and strings.content[first + same] == content[start + same]:
                same += 1
            if same == end - start:
                return slot
        slot = (slot + 1) & (len(strings.slots) - 1)


@numba.njit(cache=True)
def _add(
    strings: Strings, content: np.ndarray, start: int, end: int, key: np.uint64, slot: int
) -> int:  # pragma: no cover - compiled
    """Number a new string, for which there is room; `slot` is where it would lie."""
    number = strings.count[0]
    first = strings.starts[number]
    strings.content[first : first + end - start] = content[start:end]
    strings.starts[number + 1] = first + end - start
    strings.hashes[number] = key
    strings.slots[slot] = number + 1
    strings.count[0] += 1
    return number


@numba.njit(cache=True)
def cut(
    content: np.ndarray, pieces: Pieces, words: Words, search: Search, ids: np.ndarray, ends: np.ndarray
) -> int:  # pragma: no cover - compiled
    """Write the ids of the normalised texts in `content`, each ended by a zero, back to back, and where those of each
    text [T] end; -1 of a text that has to go to sentencepiece. Returns the bytes of the others."""
    place = num_ids = cut_bytes = 0
    for text in range(len(ends)):
        cost, fits = 0.0, True
        first_place, first_id = place, num_ids
        while fits and content[place]:
            end, key = place, _HASH_START
            while content[end] and (end == place or content[end] != _SPACE):
                key = (key ^ np.uint64(content[end])) * _HASH_FACTOR
                end += 1
            if end - place > MAX_WORD_BYTES:
                fits = False
                break
            slot = _slot_of(words.strings, content, place, end, key)
            word = words.strings.slots[slot] - 1
            if word < 0:
                if _is_full(words):
                    words.strings.slots[:] = 0
                    words.strings.count[0] = 0
                    slot = _slot_of(words.strings, content, place, end, key)
                word = _add(words.strings, content, place, end, key, slot)
                _cut_word(content, place, end, pieces, words, word, search)
            for number in range(words.id_starts[word], words.id_starts[word + 1]):
                ids[num_ids] = words.ids[number]
                num_ids += 1
            cost += words.costs[word]
            fits = cost <= words.largest_safe_costs[word]
            place = end
        while content[place]:  # behind a word that does not fit
            place += 1
        place += 1
        if fits:
            ends[text] = num_ids
            cut_bytes += place - first_place
        else:
            ends[text], num_ids = -1, first_id
    return cut_bytes


@numba.njit(cache=True)
def _is_full(words: Words) -> bool:  # pragma: no cover - compiled
    """Whether a word might not fit."""
    count = words.strings.count[0]
    bytes_left = len(words.strings.content) - words.strings.starts[count]
    ids_left = len(words.ids) - words.id_starts[count]
    return count == len(words.costs) or min(bytes_left, ids_left) < MAX_WORD_BYTES


@numba.njit(cache=True)
def _cut_word(
    content: np.ndarray, start: int, end: int, pieces: Pieces, words: Words, word: int, search: Search
) -> None:  # pragma: no cover - compiled
    """Find the two likeliest cuts of content[start:end] and keep the likeliest as that of `word`."""
    length = end - start
    search.best[: length + 1], search.second[: length + 1] = -np.inf, -np.inf
    search.best[0] = 0.0
    first_id = words.id_starts[word]
    words.id_starts[word + 1] = first_id
    words.costs[word], words.largest_safe_costs[word] = 0.0, -1.0
    for place in range(length):
        if not _begins_character(content, start + place):
            continue
        node, following, has_piece, is_first = 0, place, False, True
        while following < length:
            successor = pieces.nodes[node, 0] + content[start + following]
            if pieces.nodes[node, 0] < 0 or pieces.nodes[successor, 1] != node:
                break
            node = successor
            following += 1
            piece = pieces.pieces[node]
            if piece >= 0:
                has_piece |= is_first
                likely = search.best[place] + pieces.scores[piece]
                if likely > search.best[following]:
                    search.second[following] = max(search.best[following], search.second[place] + pieces.scores[piece])
                    search.best[following] = likely
                    search.starts[following], search.pieces[following] = place, piece
                else:
                    search.second[following] = max(search.second[following], likely)
            is_first = is_first and not (following < length and _begins_character(content, start + following))
        if not has_piece:
            return
    num_ids, place = 0, length
    while place > 0:
        num_ids, place = num_ids + 1, search.starts[place]
    words.id_starts[word + 1] = first_id + num_ids
    place = length
    while place > 0:
        num_ids -= 1
        words.ids[first_id + num_ids] = pieces.ids[search.pieces[place]]
        place = search.starts[place]
    # No piece reaches into the word or out of it, so its cuts all go on from one float32 sum s of the text before, and
    # the cut with the largest sum at its end is taken: no addition turns the order of two sums around. Scores are not
    # above 0, so that |sum| only grows. With n additions, each off by at most 2^-24 of its result, a cut that is taken
    # has |sum| <= c / (1 - n 2^-24), of c = |s| + the cost of the likeliest cut, and it and the likeliest are off by
    # n 2^-24 of that at most. So another one is taken only when it is less likely by no more than
    # 2 n 2^-24 c / (1 - n 2^-24). Twice that is asked for: it covers n <= length <= 96, and s, which is off from the
    # exact sum before by 2^-24 of itself an addition, less than a twentieth in 800,000 of them. What comes after the
    # word changes nothing in it.
    words.costs[word] = -search.best[length]
    words.largest_safe_costs[word] = (search.best[length] - search.second[length]) / (4.0 * _ROUNDING * length)


@numba.njit(cache=True)
def _begins_character(content: np.ndarray, place: int) -> bool:  # pragma: no cover - compiled
    return content[place] & 0xC0 != 0x80
