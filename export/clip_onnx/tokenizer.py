"""A CLIP's tokenizer as files, checked against open_clip's own on odd texts before it is written."""

from __future__ import annotations

import gzip
import random
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from open_clip import tokenizer as open_clip_tokenizer

from synthesis.clip_tokenizer import MERGES, tokenizer_of
from synthesis.probes import PROBE_TEXTS
from thinwire.errors import ThinwireError

BPE_FILE, JSON_FILE = "bpe_merges.txt.gz", "tokenizer.json"
CHECKED = 1000
WORDS = ("cat", "I'LL", "they've", "&amp;", "Ã©", "naïve", "ﬁsh", "İ", "ſ", "’s", "日本", "🐈‍⬛", "<end_of_text>", "42")


class TokenizerError(ThinwireError):
    """The tokenizer cannot be written so that it gives the same tokens without PyTorch; the message says why."""

    reason = "BAD_TOKENIZER"


def write_tokenizer(tokenizer: Any, folder: Path) -> tuple[dict[str, Any], str]:
    """Writes what `tokenizer`, as `open_clip.get_tokenizer` gives it, needs into `folder`.

    Returns the card's section and the file's name. Raises `TokenizerError` for a kind that has no form without PyTorch,
    or where one of `CHECKED` odd texts gets other tokens.
    """
    kind = type(tokenizer).__name__
    if isinstance(tokenizer, open_clip_tokenizer.SimpleTokenizer):
        card = _write_bpe(tokenizer, folder)
    elif hasattr(getattr(tokenizer, "tokenizer", None), "backend_tokenizer"):
        card = _write_json(tokenizer, folder)
    else:
        raise TokenizerError(f"{kind} has no form without PyTorch: serve this CLIP with --runtime torch")
    texts = [*PROBE_TEXTS, *odd_texts(CHECKED)]
    wanted, got = tokenizer(texts).numpy(), tokenizer_of(card, folder)(texts)
    if wanted.shape != got.shape or (wanted != got).any():
        rows = np.flatnonzero((wanted != got).any(axis=1)) if wanted.shape == got.shape else [0]
        raise TokenizerError(
            f"{kind}: {len(rows)} of {len(texts)} texts get other tokens without PyTorch, {texts[rows[0]]!r} for one: "
            "serve this CLIP with --runtime torch"
        )
    return card, card["file"]


def odd_texts(count: int, seed: int = 0) -> list[str]:
    """Texts of any letters, of ASCII noise, and of words that cleaning and merging treat specially."""
    rng = random.Random(seed)
    hidden = ("Cs", "Cn", "Co")
    letters = [chr(code) for code in range(sys.maxunicode) if unicodedata.category(chr(code)) not in hidden]
    ascii_noise = "abcdefghijklmnopqrstuvwxyzABCDEF'’ 0123456789!?.,;-_<>&#\t\n"
    makers: list[Callable[[], str]] = [
        lambda: "".join(rng.choices(letters, k=rng.randint(0, 60))),
        lambda: "".join(rng.choices(ascii_noise, k=rng.randint(0, 120))),
        lambda: " ".join(rng.choices(WORDS, k=rng.randint(0, 20))),
    ]
    return [rng.choice(makers)() for _ in range(count)]


def _write_bpe(tokenizer: open_clip_tokenizer.SimpleTokenizer, folder: Path) -> dict[str, Any]:
    if tokenizer.reduction_fn is not None or len(tokenizer.all_special_ids) != 2:
        raise TokenizerError("SimpleTokenizer with masks or special tokens of its own: serve it with --runtime torch")
    merges = sorted(tokenizer.bpe_ranks, key=tokenizer.bpe_ranks.get)
    if len(merges) != MERGES:
        raise TokenizerError(f"its vocabulary has {len(merges)} merges, CLIP's has {MERGES}: use --runtime torch")
    lines = "\n".join(" ".join(pair) for pair in merges)
    (folder / BPE_FILE).write_bytes(gzip.compress(lines.encode("utf-8"), 9, mtime=0))
    return {
        "kind": "clip-bpe",
        "file": BPE_FILE,
        "context_length": tokenizer.context_length,
        "clean": _clean_of(tokenizer),
    }


def _write_json(tokenizer: Any, folder: Path) -> dict[str, Any]:
    inner = tokenizer.tokenizer
    if getattr(tokenizer, "tokenizer_mode", ""):
        raise TokenizerError(f"tokenizer mode {tokenizer.tokenizer_mode!r} has no form here: use --runtime torch")
    (folder / JSON_FILE).write_text(inner.backend_tokenizer.to_str(), encoding="utf-8")
    return {
        "kind": "tokenizers",
        "file": JSON_FILE,
        "context_length": tokenizer.context_length,
        "clean": _clean_of(tokenizer),
        "pad": inner.pad_token_id or 0,
        "zeroed": inner.sep_token_id if getattr(tokenizer, "strip_sep_token", False) else None,
    }


def _clean_of(tokenizer: Any) -> str:
    clean = getattr(tokenizer, "clean_fn", None)
    names = {"_clean_lower": "lower", "_clean_whitespace": "whitespace", "_clean_canonicalize": "canonicalize"}
    name = getattr(clean, "__name__", "")
    if name not in names:
        raise TokenizerError(f"its cleaning {name!r} is unknown here: serve this CLIP with --runtime torch")
    return names[name]
