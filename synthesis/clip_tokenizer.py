"""Tokenizers of CLIPs without torch: CLIP's own byte-pair encoding, and any that a `tokenizers` file describes.

The same tokens as open_clip's `SimpleTokenizer` (after https://github.com/openai/CLIP, MIT License, Copyright (c) 2021
OpenAI) and `HFTokenizer`. Here because the workshop checks and writes them, and the cloud runs them.
"""

from __future__ import annotations

import gzip
import html
import string
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from thinwire.errors import ClipUnavailable

MERGES = 49152 - 256 - 2  # that CLIP's vocabulary is made of
WORDS_KEPT = 65536  # bounds what clients' texts leave in memory
NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Tokenizer(Protocol):
    """Texts → int64 (N, context_length), cut and padded as the CLIP was trained."""

    context_length: int

    def __call__(self, texts: Sequence[str]) -> np.ndarray: ...


def cleaning(kind: str) -> Callable[[str], str]:
    """What open_clip does to a text first: "lower", "whitespace" or "canonicalize". Raises `KeyError`."""
    import ftfy

    def basic(text: str) -> str:
        return html.unescape(html.unescape(ftfy.fix_text(text))).strip()

    def whitespace(text: str) -> str:
        return " ".join(basic(text).split())

    return {
        "lower": lambda text: whitespace(text).lower(),
        "whitespace": whitespace,
        "canonicalize": lambda text: " ".join(
            basic(text).replace("_", " ").translate(NO_PUNCTUATION).lower().split()
        ).strip(),
    }[kind]


class ClipBpe:
    """CLIP's byte-pair encoding: `<start_of_text>`, the text's pieces, `<end_of_text>`, zeros."""

    def __init__(self, merges: Path, context_length: int, clean: str = "lower") -> None:
        """merges: gzip of `MERGES` lines, two pieces each. Raises `ClipUnavailable`."""
        import regex

        self.context_length = context_length
        self._clean = cleaning(clean)
        try:
            lines = gzip.decompress(merges.read_bytes()).decode("utf-8").split("\n")
        except (OSError, EOFError, ValueError) as error:
            raise ClipUnavailable(f"{merges}: cannot be read ({error}): copy the whole folder again") from error
        if len(lines) != MERGES:
            raise ClipUnavailable(f"{merges}: has {len(lines)} merges, CLIP's vocabulary has {MERGES}")
        self._bytes = _byte_letters()
        pieces = list(self._bytes.values())
        pieces += [f"{piece}</w>" for piece in pieces]
        pieces += [line.replace(" ", "", 1) for line in lines]
        self._start, self._end = len(pieces), len(pieces) + 1
        self._ids = {piece: number for number, piece in enumerate(pieces)}
        self._specials = {"<start_of_text>": self._start, "<end_of_text>": self._end}
        self._ranks = {line: rank for rank, line in enumerate(lines)}  # by "first second"
        self._words = regex.compile(
            r"""<start_of_text>|<end_of_text>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+""",
            regex.IGNORECASE,
        )
        self._of_word = lru_cache(WORDS_KEPT)(self._encode_word)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        tokens = np.zeros((len(texts), self.context_length), np.int64)
        for row, text in zip(tokens, texts):
            found = [self._start]
            for word in self._words.findall(self._clean(text)):
                found += self._of_word(word)
            found = [*found, self._end][: self.context_length]
            if len(found) == self.context_length:
                found[-1] = self._end
            row[: len(found)] = found
        return tokens

    def _encode_word(self, word: str) -> tuple[int, ...]:
        letters = "".join(self._bytes[byte] for byte in word.encode("utf-8"))
        if letters in self._specials:
            return (self._specials[letters],)
        pieces = [*letters[:-1], f"{letters[-1]}</w>"]
        while len(pieces) > 1:
            ranks = [self._ranks.get(f"{first} {second}", MERGES) for first, second in pairwise(pieces)]
            best = min(ranks)
            if best == MERGES:
                break
            merged, place = [], 0
            while place < len(pieces):
                if place < len(ranks) and ranks[place] == best:  # equal rank is the same pair
                    merged.append(pieces[place] + pieces[place + 1])
                    place += 2
                else:
                    merged.append(pieces[place])
                    place += 1
            pieces = merged
        return tuple(self._ids[piece] for piece in pieces)


class FileTokenizer:
    """A tokenizer that `tokenizer.json` describes, with open_clip's cleaning and padding around it."""

    def __init__(self, file: Path, context_length: int, clean: str, pad: int, zeroed: int | None = None) -> None:
        """pad: the token of the padding; zeroed: a token that becomes 0. Raises `ClipUnavailable`."""
        try:
            from tokenizers import Tokenizer as Rust
        except ModuleNotFoundError as error:
            raise ClipUnavailable(
                f"the tokenizer of {file.parent} needs a package: pip install 'thinwire[cloud-tokenizers]'"
            ) from error
        self.context_length, self._zeroed = context_length, zeroed
        self._clean = cleaning(clean)
        try:
            self._rust = Rust.from_file(str(file))
        except Exception as error:  # the package raises plain Exception
            raise ClipUnavailable(f"{file}: cannot be read ({error}): copy the whole folder again") from error
        self._rust.enable_truncation(context_length)
        self._rust.enable_padding(length=context_length, pad_id=pad)

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        found = self._rust.encode_batch([self._clean(text) for text in texts])
        tokens = np.array([each.ids for each in found], np.int64).reshape(-1, self.context_length)
        if self._zeroed is not None:
            tokens[tokens == self._zeroed] = 0
        return tokens


def tokenizer_of(card: dict[str, Any], folder: Path) -> Tokenizer:
    """The tokenizer that an artefact's card describes: its `tokenizer` section. Raises `ClipUnavailable`."""
    try:
        kind, file, length, clean = card["kind"], folder / card["file"], card["context_length"], card["clean"]
        if kind == "clip-bpe":
            return ClipBpe(file, length, clean)
        if kind == "tokenizers":
            return FileTokenizer(file, length, clean, card["pad"], card.get("zeroed"))
    except KeyError as error:
        raise ClipUnavailable(f"{folder}: its card describes no tokenizer ({error} is missing or unknown)") from error
    raise ClipUnavailable(f"{folder}: tokenizer {kind!r} is unknown to this release: upgrade thinwire")


def _byte_letters() -> dict[int, str]:
    """A printable letter for each byte, in the order of CLIP's vocabulary."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = {byte: chr(byte) for byte in shown}
    for byte in range(256):
        if byte not in letters:
            letters[byte] = chr(256 + len(letters) - len(shown))
    return letters
