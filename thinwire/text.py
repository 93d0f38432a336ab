"""Text that comes from outside, made safe in one place before it is stored or printed.

File names, addresses and messages of other programs may hold bytes that are not UTF-8 (Python keeps them as lone
surrogates, PEP 383), control characters that move a terminal's cursor, and passwords. `safe_text` is for what is
stored, `shown` for what is printed, `shown_address` and `without_secrets` keep passwords out of both, and
`safe_streams` lets a program print any text on a terminal or pipe of any encoding.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import unicodedata
from typing import TextIO

# user:password@ of an address. The last @ before the path ends it: careless passwords hold @ too
_USER_INFO = re.compile(r"(?<=://)[^\s/?#]*@")
# Passwords that hold / or ? or #, although they must not; what follows HOST:PORT is no password
_LOOSE_USER_INFO = re.compile(r"(?<=://)[^\s@:/\[]*:(?!\d+[/?#])(?:(?!://)[^\s@])*@(?=[\w\[])")
_SECRET_WORDS = (
    r"pass(?:word|wd|phrase)?|pwd|token|(?:api|access|auth)?[_-]?key|secret|auth|sig(?:nature)?|usr|user(?:name)?"
)
# ?token=..., also in a path as some cameras want it: rtsp://cam/user=admin_password=..._channel=1
_PARAMETERS = re.compile(
    rf"(?P<name>(?<![A-Za-z0-9])(?:[A-Za-z]+[_-])*(?:{_SECRET_WORDS})=)(?P<value>[^\s&;/'\"#]+?)"
    r"(?=_[A-Za-z]+=|[\s&;/'\"#]|$)",
    re.IGNORECASE,
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")
HIDDEN = "***"


def safe_text(text: str | bytes | os.PathLike[str]) -> str:
    """Text that every UTF-8 encoder takes: bytes of a file name that are not UTF-8 become �. Other text is unchanged.

    >>> safe_text("caf\\udce9.jpg")
    'caf�.jpg'
    """
    plain = os.fsdecode(text)
    # surrogateescape first, so that a broken byte becomes one �; surrogatepass for the other lone surrogates
    try:
        return plain.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return "".join("�" if "\ud800" <= char <= "\udfff" else char for char in plain)


def shown(text: str | bytes | os.PathLike[str]) -> str:
    """A file name or message as one line that no terminal trips over: as `safe_text`, without control characters.

    Those become � too: a name must not move the cursor.
    """
    return "".join("�" if unicodedata.category(char) in ("Cc", "Zl", "Zp") else char for char in safe_text(text))


def shown_address(address: str | os.PathLike[str]) -> str:
    """An address without user name, password and tokens; anything else as `safe_text`. Use it wherever one is shown.

    >>> shown_address("rtsp://admin:hunter2@cam/stream?channel=1&token=abc")
    'rtsp://cam/stream?channel=1&token=***'
    """
    text = safe_text(address)
    return _stripped(text) if "://" in text else text


def without_secrets(text: str) -> str:
    """A message with every address in it as `shown_address` shows it.

    >>> without_secrets("cannot open 'http://u:p@cam/x': timed out")
    "cannot open 'http://cam/x': timed out"
    """
    if "://" not in text:
        return text
    return _ADDRESS.sub(lambda found: _stripped(found.group()), text)


def _stripped(address: str) -> str:
    plain = _USER_INFO.sub("", address)
    address = plain if plain != address else _LOOSE_USER_INFO.sub("", address)
    return _PARAMETERS.sub(lambda found: found["name"] + HIDDEN, address)


def takes(stream: TextIO, text: str) -> bool:
    """Whether a stream's encoding has all characters of `text`."""
    try:
        text.encode(getattr(stream, "encoding", None) or "utf-8")
        return True
    except (UnicodeEncodeError, LookupError):
        return False


def safe_streams() -> None:
    """stdout and stderr print every text from now on: what their encoding lacks becomes an escape such as \\u732b.

    A stream that was closed before the start (`>&-`) is replaced by one that drops what it gets. Its number is taken
    too: else the next file or socket that is opened would get it, and what C libraries print would go there.
    """
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(handle, True)
    os.close(handle)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (for as long as we run)
        elif isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):  # detached or closed: nothing to set
                stream.reconfigure(errors="backslashreplace")
