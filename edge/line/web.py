"""HTTP for webhooks, snapshots of cameras and downloads: one opener, which knows proxies and fails in one way only."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import PurePosixPath

from edge.line.image_files import EXTENSIONS
from thinwire.proxies import proxy_of
from thinwire.text import shown, shown_address, without_secrets

MAX_IMAGE_BYTES = 64 << 20
IMAGE_TIMEOUT_S = 10.0
MAX_LOCATION = 200
MAX_SHOWN = 60  # characters of the reply of something that is not a web server


class WebError(OSError):
    """Nothing usable came back; the text says what happened, without user names and passwords.

    status: of the reply, None where none came.
    """

    def __init__(self, text: str, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


def is_web_address(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def checked(url: str) -> str:
    """`url`, with what is not ASCII percent-encoded. Raises `WebError` for what is not a web address."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("write http://HOST/PATH or https://HOST/PATH")
        parts.hostname.encode("idna")
    except ValueError as error:  # urlsplit's own words: a port that is not a number, a bracket that is not closed
        raise WebError(str(error)) from error
    return urllib.parse.quote(url, safe="%/:=&?~#+!$,;'@()*[]")


def open_url(
    url: str,
    timeout_s: float,
    data: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    follow: bool = True,
) -> http.client.HTTPResponse:
    """An open reply of status 2xx; data: a body to POST. User and password of the address go as Basic or Digest.

    timeout_s: of each wait for the other end. follow: redirects are followed; else they count as failures. Raises
    `WebError`, and nothing else, whatever answers.
    """
    try:
        plain, user, password = _split(checked(url))
        request = urllib.request.Request(plain, data, dict(headers or {}))
        return _opener(plain, user, password, follow, data is not None).open(request, timeout=timeout_s)
    except urllib.error.HTTPError as error:
        error.close()
        text = f"HTTP {error.code} {shown(error.reason or '')}".rstrip()
        if 300 <= error.code < 400 and (where := error.headers.get("Location")):
            there = shown_address(urllib.parse.urljoin(plain, shown(where)[:MAX_LOCATION]))
            text += f", it points to {there}: give the address that answers itself"
        raise WebError(text, error.code) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _told(error) from error


def read_reply(reply: http.client.HTTPResponse, most_bytes: int) -> bytes:
    """The body, at most `most_bytes` and one more byte. Raises `WebError`."""
    try:
        return reply.read(most_bytes + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise _told(error) from error


def fetched_image(url: str, timeout_s: float = IMAGE_TIMEOUT_S) -> bytes | None:
    """The image file that an address gives; None where it gives a stream, or a page. Raises `WebError`."""
    with open_url(url, timeout_s, headers={"Cache-Control": "no-cache"}) as reply:
        kind = reply.headers.get_content_type()
        named = PurePosixPath(urllib.parse.urlsplit(url).path).suffix.lower() in EXTENSIONS
        if not kind.startswith("image/") and (not named or kind.startswith(("multipart/", "video/"))):
            return None
        data = read_reply(reply, MAX_IMAGE_BYTES)
    if len(data) > MAX_IMAGE_BYTES:
        raise WebError(f"gives more than {MAX_IMAGE_BYTES >> 20} MiB where a picture was expected")
    return data


def _told(error: Exception) -> WebError:
    if isinstance(error, WebError):
        return error
    reason = getattr(error, "reason", None) if isinstance(error, urllib.error.URLError) else None
    if isinstance(reason, Exception):
        return _told(reason)
    if isinstance(error, http.client.BadStatusLine):
        said = shown(error.line.strip()) if isinstance(error.line, str) else ""
        if said[1:2] == "�" and error.line[:1] in ("\x15", "\x16"):
            return WebError("it speaks TLS: write https://")
        return WebError(f"it answers, but not in HTTP: {said[:MAX_SHOWN]!r}" if said else "it ended the connection")
    text = without_secrets(shown(str(getattr(error, "strerror", None) or reason or error) or type(error).__name__))
    return WebError(text[:300])


def _split(url: str) -> tuple[str, str | None, str]:
    """An address without user info, the user and the password."""
    parts = urllib.parse.urlsplit(url)
    info, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None, ""
    user, _, password = info.partition(":")
    return parts._replace(netloc=host).geturl(), urllib.parse.unquote(user), urllib.parse.unquote(password)


def _opener(url: str, user: str | None, password: str, follow: bool, posts: bool) -> urllib.request.OpenerDirector:
    proxy = proxy_of(url)
    handlers: list[urllib.request.BaseHandler] = [
        urllib.request.ProxyHandler({} if proxy is None else {urllib.parse.urlsplit(url).scheme: proxy})
    ]
    if user is not None:
        passwords = urllib.request.HTTPPasswordMgrWithPriorAuth()
        # At once with a POST: receivers of results seldom challenge. Cameras do, for Digest most of the time
        passwords.add_password(None, url, user, password, is_authenticated=posts)
        handlers += [urllib.request.HTTPDigestAuthHandler(passwords), urllib.request.HTTPBasicAuthHandler(passwords)]
    if not follow:
        handlers.append(_NoRedirect())
    return urllib.request.build_opener(*handlers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None  # becomes an HTTPError; following would turn a POST into a GET
