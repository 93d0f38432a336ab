"""Labels and prompt templates as users write them, checked once for both ends."""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Sequence

from thinwire.errors import LabelError
from thinwire.files import read_file
from thinwire.prompts import PROMPT_SETS

DEFAULT_PROMPT_SET = "7"
MAX_LABELS = 20_000
MAX_LABEL_CHARS = 400
MAX_FILE_BYTES = 32 << 20  # 20,000 labels of 400 characters
MAX_TEMPLATES = 200
MAX_TEMPLATE_CHARS = 400
QUOTES = {'"': '"', "'": "'", "`": "`", "\u201c": "\u201d", "\u2018": "\u2019", "\u201e": "\u201c", "\u00ab": "\u00bb"}


def validate_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """`labels` stripped, without empty ones and repeats, in their order.

    Raises `LabelError` when none is left, one is longer than 400 characters or holds control characters, or there are
    more than 20,000.
    """
    if isinstance(labels, str):
        raise LabelError("labels must be a list of texts, not one text: use parse_labels() to split it")
    kept: dict[str, None] = {}
    for label in labels:
        if not isinstance(label, str):
            raise LabelError(f"a label must be text, got {type(label).__name__}")
        text = label.strip()
        if not text:
            continue
        _check_text(text, "label", MAX_LABEL_CHARS)
        kept[text] = None
        if len(kept) > MAX_LABELS:
            raise LabelError(f"there are more than {MAX_LABELS} labels: send fewer")
    if not kept:
        raise LabelError('no labels: give at least one, for instance --labels "cat,dog"')
    return tuple(kept)


def parse_labels(text: str) -> tuple[str, ...]:
    """Labels from one line of text, split at commas and line ends; see `validate_labels`.

    >>> parse_labels("cat, dog,,cat")
    ('cat', 'dog')
    """
    return validate_labels(part for line in text.splitlines() for part in line.split(","))


def read_labels(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Labels from a UTF-8 text file, one a line (commas belong to the label). Raises `LabelError` naming the file."""
    try:
        text = read_file(path, MAX_FILE_BYTES).decode("utf-8-sig")
    except OSError as error:
        raise LabelError(f"{path}: cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise LabelError(f"{path}: is not UTF-8 text: write one label a line") from error
    try:
        return validate_labels(text.splitlines())
    except LabelError as error:
        raise LabelError(f"{path}: {error}") from error


def resolve_templates(prompt_set: str = "", templates: Sequence[str] = ()) -> tuple[str, ...]:
    """The templates of a request: its own if it has any, else those of its prompt set (empty: the 7).

    Raises `LabelError` for an unknown set, or own templates that are too many, too long, or do not hold {} once.
    """
    if not templates:
        name = prompt_set or DEFAULT_PROMPT_SET
        if name not in PROMPT_SETS:
            raise LabelError(f"prompt set {name!r} is unknown: use one of {', '.join(PROMPT_SETS)}, or own templates")
        return PROMPT_SETS[name]
    if len(templates) > MAX_TEMPLATES:
        raise LabelError(f"there are {len(templates)} templates, the limit is {MAX_TEMPLATES}")
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise LabelError(f'a template holds {{}} exactly once, for instance "a photo of a {{}}."; got {template!r}')
        _check_text(template, "template", MAX_TEMPLATE_CHARS)
    return tuple(templates)


def fill_templates(label: str, templates: Sequence[str]) -> list[str]:
    """What of `label` is spoken, put into each template. Plain replacement: braces inside a label mean nothing.

    >>> fill_templates("cat", ["a photo of a {}."])
    ['a photo of a cat.']
    >>> fill_templates('"traffic_light"', ["a photo of a {}."])
    ['a photo of a traffic light.']
    """
    label = spoken(label)
    return [template.replace("{}", label) for template in templates]


def spoken(label: str) -> str:
    """A label without what people write but do not say: quotation marks around it, underscores between its words.

    Text towers take both for words of their own. A label that is nothing else stays as it is.

    >>> spoken("\u201cfire_hydrant\u201d"), spoken("rock 'n' roll"), spoken('"')
    ('fire hydrant', "rock 'n' roll", '"')
    """
    text = " ".join(re.sub(r"(?<=[^\W_])_(?=[^\W_])", " ", label).split())
    while len(text) > 2 and QUOTES.get(text[0]) == text[-1] and not {text[0], text[-1]} & set(text[1:-1]):
        text = text[1:-1].strip()
    return text or label


def _check_text(text: str, kind: str, limit: int) -> None:
    if len(text) > limit:
        raise LabelError(f"the {kind} {text[:40]!r}... has {len(text)} characters, the limit is {limit}")
    if any(unicodedata.category(char) in ("Cc", "Cs") for char in text):
        raise LabelError(f"the {kind} {text[:40]!r} holds control characters: remove them")
