"""`thinwire-edge classify`: images in, a table or JSON lines out."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge.commands.terminal import ProgressBar, table
from edge.defaults import CANNOT_RUN, DEFAULT_BUNDLE, OK, SOME_FAILED
from edge.errors import ConnectionOptionsError, NothingToDo, ServerUnreachable, SourceLost, reason_of
from edge.line.client import Client, Outcome
from edge.line.image_files import plain_word, search
from edge.line.label_upload import Progress
from edge.line.ladder import FORM, Ladder, fuses, not_fused, open_ladder
from edge.line.progressive import classify_progressive
from edge.line.web import WebError, fetched_image, is_web_address
from thinwire.errors import LabelError, ThinwireError
from thinwire.files import read_file
from thinwire.labels import parse_labels, read_labels, validate_labels
from thinwire.text import safe_text, shown, shown_address, without_secrets


@dataclass(frozen=True)
class Picture:
    """One image of the command line. name: safe to show; image: a path, or the bytes that a web address gave."""

    name: str
    image: Path | bytes
    error: ThinwireError | None = None

    @property
    def file_bytes(self) -> int | None:
        return file_bytes(self.image) if isinstance(self.image, Path) else len(self.image)


def pictures_of(words: Sequence[str], say: Callable[[str], None]) -> list[Picture]:
    """Files, folders searched for images, and snapshots of web addresses, in their order."""
    found: list[Picture] = []
    for word in map(plain_word, words):
        if is_web_address(word):
            name = shown_address(word)
            try:
                data = fetched_image(word)
                if data is None:
                    raise WebError("gives no single picture: a stream is for `thinwire-edge run`")
                found.append(Picture(name, data))
            except WebError as error:
                found.append(Picture(name, b"", SourceLost(f"{name}: {error}")))
            continue
        inside = search([word])
        for note in inside.notes():
            say(note)
        found.extend(Picture(safe_text(source.path), source.path) for source in inside.images)
    return found


LABELS_SAID_EVERY_S = 30.0
MAX_TOKEN_BYTES = 1 << 16
MAX_NOTES = 20  # shown; a folder of a thousand black pictures need not say so a thousand times


class Tally:
    """Counts of a run so far."""

    def __init__(self) -> None:
        self.answered = self.failed = self.packet_bytes = self.file_bytes = 0
        self.server_lost = False
        self.labels_saved_bytes = 0

    def add(self, outcome: Outcome, picture: Picture) -> None:
        if outcome.result is None:
            self.failed += 1
            self.server_lost |= isinstance(outcome.error, ServerUnreachable)
            return
        self.answered += 1
        self.packet_bytes += outcome.result.packet_bytes
        self.file_bytes += picture.file_bytes or 0

    def text(self, total: int) -> str:
        """One line for people."""
        words = [f"{_count(total, 'image')}, {self.answered} answered"]
        if self.failed:
            words.append(f"{self.failed} failed")
        if total > self.answered + self.failed:
            words.append(f"{total - self.answered - self.failed} not tried")
        if not self.answered:
            return ", ".join(words)
        sent = f"{_count(self.packet_bytes, 'byte')} sent, {self.packet_bytes / self.answered:,.1f} each"
        files = (
            f"their files have {_count(self.file_bytes, 'byte')}, {self.file_bytes / self.packet_bytes:,.0f}x as many"
        )
        saved = f"; {_count(self.labels_saved_bytes, 'byte')} of labels saved" if self.labels_saved_bytes else ""
        return f"{', '.join(words)}; {sent}; {files}{saved}"


def run(args: argparse.Namespace) -> int:
    """Returns the exit code. Raises `ThinwireError` for what keeps the whole run from starting."""
    labels = labels_of(args)
    sources = pictures_of(args.images, _complain)
    if not sources:
        named = ", ".join(map(shown_address, args.images))
        raise NothingToDo(f"no image files in {named}: name files, or folders that hold some")
    tally, answers = Tally(), []
    noted: set[str] = set()
    ladder = ladder_of(args)
    with _client(args, ladder) as client:
        info = client.check()
        for step in ladder.others if ladder else ():
            if not fuses(info, client.bundle, [step.bundle]):
                _complain(f"note: {not_fused(client.bundle, step.bundle)}")
        client.on_label_progress = _label_lines(_complain)
        try:
            with ProgressBar(len(sources), sys.stderr, "classifying") as progress:
                for picture, outcome in _outcomes(client, sources, labels, args, tally, ladder):
                    tally.add(outcome, picture)
                    if args.json:
                        print(json.dumps(_record(client, picture, outcome, args.rate or client.rate)), flush=True)
                    elif outcome.ok:
                        answers.append((picture, outcome))
                    for note in outcome.result.notes if outcome.ok else ():
                        if note not in noted and len(noted) < MAX_NOTES:
                            noted.add(note)
                            progress.say(f"thinwire-edge: note: {without_secrets(safe_text(note))}")
                    if outcome.error is not None:
                        progress.say(f"thinwire-edge: {_named(picture, outcome)}")
                    progress.advance()
        finally:  # what was answered before Ctrl-C has been paid for: show it
            tally.labels_saved_bytes = client.handles.counts.saved_bytes
            if answers:
                print(_table(answers))
            print(tally.text(len(sources)), file=sys.stderr if args.json else sys.stdout)
    if tally.server_lost:
        return CANNOT_RUN
    return SOME_FAILED if tally.failed else OK


def labels_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Labels of --labels and --labels-file. Raises `LabelError`."""
    if args.labels is None and args.labels_file is None:
        raise LabelError(
            'no labels: say what the images may show, for instance --labels "cat,dog" (or --labels-file F)'
        )
    named = parse_labels(args.labels) if args.labels is not None else ()
    listed = read_labels(args.labels_file) if args.labels_file is not None else ()
    return validate_labels([*named, *listed])


def token_of(args: argparse.Namespace) -> str | None:
    """The token in --token-file. Raises `ConnectionOptionsError`."""
    if args.token_file is None:
        return None
    try:
        return read_file(args.token_file, MAX_TOKEN_BYTES).decode("ascii").strip()
    except UnicodeDecodeError as error:
        raise ConnectionOptionsError(f"{args.token_file}: holds no token, which is one line of ASCII") from error
    except OSError as error:
        raise ConnectionOptionsError(
            f"{args.token_file}: the token cannot be read ({error.strerror or error})"
        ) from error


def ladder_of(args: argparse.Namespace) -> Ladder | None:
    """The ladder that the options name, if one. Raises `ConnectionOptionsError` beside what it replaces."""
    if not args.ladder:
        return None
    if args.bundle != DEFAULT_BUNDLE or args.rate not in (None, "auto"):
        raise ConnectionOptionsError(f"--ladder replaces --bundle and --rate: {FORM}")
    return open_ladder(args.ladder, args.threads, args.precision, args.provider)


def _client(args: argparse.Namespace, ladder: Ladder | None) -> Client:
    return Client(
        args.server,
        ladder.first.bundle if ladder else args.bundle,
        rate=ladder.first.rate if ladder else args.rate,
        threads=args.threads,
        precision=args.precision,
        provider=args.provider,
        timeout_s=args.timeout,
        tls=args.tls,
        root_certificate=args.tls_ca,
        token=token_of(args),
        client_certificate=args.tls_cert,
        client_key=args.tls_key,
        device_id=args.device_id,
    )


def _label_lines(say: Callable[[str], None]) -> Callable[[Progress], None]:
    """Says how far thousands of labels are: after two seconds, then every half minute."""
    said_at = time.monotonic() - LABELS_SAID_EVERY_S + 2

    def tell(progress: Progress) -> None:
        nonlocal said_at
        if (now := time.monotonic()) - said_at > LABELS_SAID_EVERY_S:
            said_at = now
            say(f"labels go ahead of the images, once: {progress}")

    return tell


def _outcomes(
    client: Client,
    pictures: Sequence[Picture],
    labels: tuple[str, ...],
    args: argparse.Namespace,
    tally: Tally,
    ladder: Ladder | None,
) -> Iterator[tuple[Picture, Outcome]]:
    for place, picture in enumerate(pictures):
        if picture.error is not None:
            yield picture, Outcome(place, picture.image, error=picture.error)
    good = [picture for picture in pictures if picture.error is None]
    # Once the server is gone, every further image would wait for the same nothing; what is on its way is waited for
    images = (picture.image for picture in itertools.takewhile(lambda _: not tally.server_lost, good))
    if ladder is not None:
        words = {"confidence": args.confidence, "in_flight": args.in_flight, "ladder": ladder}
        answers = classify_progressive(client, images, labels, args.top_k, args.prompt_set, **words)
    else:
        answers = client.classify_many(images, labels, args.top_k, args.prompt_set, in_flight=args.in_flight)
    for outcome in answers:
        yield good[outcome.index], outcome


def _record(client: Client, picture: Picture, outcome: Outcome, rate: str) -> dict[str, Any]:
    """One JSON line. Numbers are rounded to what they mean: microseconds and parts in a million."""
    # A file's own name, whatever its bytes: JSON's \udcXX lets a reader find the file again
    name = picture.name if isinstance(picture.image, bytes) else os.fspath(picture.image)
    record: dict[str, Any] = {"image": name, "ok": outcome.ok}
    if outcome.result is None:
        message = without_secrets(safe_text(str(outcome.error)))
        return {**record, "error": {"reason": reason_of(outcome.error), "message": message}}
    answer = _rounded(outcome.result.to_dict())
    where = {"file_bytes": picture.file_bytes, "rate": rate, "bundle": client.bundle.name}
    return {**record, **answer, **where, "model_id": client.bundle.model_id.hex()}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 6)
    if isinstance(value, dict):
        return {key: round(each, 3) if key.endswith("_ms") else _rounded(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(each) for each in value]
    return value


def _table(answers: Sequence[tuple[Picture, Outcome]]) -> str:
    heads = ("image", "label", "probability", "bytes", "edge ms", "round trip ms")
    rows = []
    for picture, outcome in answers:
        result = outcome.result
        rows.append(
            (
                [shown(picture.name)],
                [shown(each.label) for each in result.predictions],
                [f"{100 * each.probability:.1f} %" for each in result.predictions],
                [f"{result.packet_bytes:,}"],
                [f"{result.edge_ms:.1f}"],
                [f"{result.round_trip_ms:.1f}"],
            )
        )
    return table(heads, rows, 2, sys.stdout)


def _named(picture: Picture, outcome: Outcome) -> str:
    """The error, with the image's name unless it begins with it."""
    message = safe_text(str(outcome.error))
    return message if message.startswith(picture.name) else f"{picture.name}: {message}"


def _complain(text: str) -> None:
    print(f"thinwire-edge: {shown(without_secrets(text))}", file=sys.stderr)


def file_bytes(path: Path) -> int | None:
    """Size of a file; None where it has gone."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"
