"""Bundles on a device: installed whole and checked, changed by one rename, taken back by another.

    STORE/NAME/MODEL_ID-CARDHASH/    a bundle as it came
    STORE/NAME/current               link to the one in use: `thinwire-edge run --bundle STORE/NAME/current`
    STORE/NAME/previous              link to the one before

A bundle's card holds the SHA-256 of every file, so trust in `card.json` is trust in all of it: by its
SHA-256, told by a way that can be trusted, or by `card.json.sig`, a detached Ed25519 signature
(`edge.commands.signature`). From the net nothing is installed without one of them; with STORE/trusted.pem
nothing at all without its signature.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path

import numpy as np

from edge.commands.signature import check_signature
from edge.errors import UpdateRefused
from edge.line.web import WebError, open_url, read_reply
from thinwire.bundle import CARD, Bundle, load_bundle
from thinwire.text import shown_address

TRUSTED = "trusted.pem"
MAX_BUNDLE_BYTES = 256 << 20
MAX_FILES = 32
DOWNLOAD_TIMEOUT_S = 60.0


def install(
    source: str, store: Path, card_sha256: str | None = None, public_key: str | os.PathLike[str] | None = None
) -> Path:
    """Checks a bundle (folder, .tar, .tar.gz, or their https:// address), puts it in the store and makes it current.

    card_sha256: the hash that its card must have; public_key: PEM file of the key that must have signed it, beside
    `trusted.pem` of the store, where there is one. Addresses need a hash or a key. Every file is checked against the
    card, and the encoder must load and encode, before anything changes. Returns its folder. Raises `UpdateRefused`, or
    what `load_bundle` and `Encoder` raise; then the bundle in use is untouched.
    """
    address, source = source, shown_address(source)
    keys = [] if public_key is None else [Path(public_key)]
    if (pinned := store / TRUSTED).exists():
        keys.append(pinned)
    if "://" in source and card_sha256 is None and not keys:
        raise UpdateRefused(
            f"{source}: a download needs a check: give the SHA-256 of its card with --card-sha256, or --public-key"
        )
    store.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".incoming-", dir=store) as name:
        folder = _fetch(address, Path(name))
        digest = hashlib.sha256(_card(folder)).hexdigest()
        if card_sha256 is not None and digest != card_sha256.lower():
            raise UpdateRefused(f"{source}: its card has SHA-256 {digest}, not {card_sha256.lower()}: do not use it")
        for key in keys:
            check_signature(folder, key)
        bundle = load_bundle(folder)
        _try_out(bundle)
        home = store / _safe(bundle.name)
        target = home / f"{bundle.model_id.hex()}-{digest[:12]}"
        home.mkdir(exist_ok=True)
        if not target.exists():
            os.replace(folder, target)
        _sync(home)
    before = current(home)
    if before is not None and before != target:
        _link(home / "previous", before.name)
    _link(home / "current", target.name)
    return target


def rollback(store: Path, name: str) -> Path:
    """Makes the bundle before the current one current again, after checking it; returns its folder.

    Raises `UpdateRefused` when there is none.
    """
    home = store / _safe(name)
    previous, now = _resolve(home / "previous"), current(home)
    if previous is None:
        raise UpdateRefused(f"{home}: no earlier bundle is installed to go back to")
    _try_out(load_bundle(previous))
    _link(home / "current", previous.name)
    if now is not None:
        _link(home / "previous", now.name)
    return previous


def current(home: Path) -> Path | None:
    """The folder that `current` names; None where there is none."""
    return _resolve(home / "current")


def bundle(args: argparse.Namespace) -> int:
    """`thinwire-edge bundle`. Returns the exit code."""
    store = Path(args.store)
    if args.action == "install":
        folder = install(args.what, store, args.card_sha256, args.public_key)
        print(f"{folder.parent / 'current'} is now {folder.name}: restart `thinwire-edge run` to use it")
    elif args.action == "rollback":
        folder = rollback(store, args.what)
        print(f"{folder.parent / 'current'} is {folder.name} again: restart `thinwire-edge run` to use it")
    else:
        for home in sorted(path for path in store.glob("*") if path.is_dir()):
            marks = {_resolve(home / "previous"): "previous", current(home): "current"}
            for folder in sorted(path for path in home.iterdir() if path.is_dir() and not path.is_symlink()):
                print(f"{home.name}/{folder.name} {marks.get(folder, '')}".rstrip())
    return 0


def _fetch(source: str, place: Path) -> Path:
    """The bundle as a folder of its own inside `place`."""
    target = place / "bundle"
    if "://" in source:
        if not source.startswith("https://"):
            raise UpdateRefused(f"{shown_address(source)}: only https:// addresses are fetched")
        source = shown_address(address := source)
        try:
            with open_url(address, DOWNLOAD_TIMEOUT_S) as reply:
                data = read_reply(reply, MAX_BUNDLE_BYTES)
        except WebError as error:
            raise UpdateRefused(f"{source}: cannot be fetched ({error}): try again") from error
        if len(data) > MAX_BUNDLE_BYTES:
            raise UpdateRefused(f"{source}: is larger than {MAX_BUNDLE_BYTES >> 20} MiB")
        (place / "download").write_bytes(data)
        return _unpack(place / "download", target, source)
    path = Path(source)
    if path.is_dir():
        shutil.copytree(path, target)
        return target
    return _unpack(path, target, source)


def _unpack(path: Path, target: Path, source: str) -> Path:
    """Plain files of an archive's one folder (or of its top), nothing else: no links, no paths, no surprises."""
    target.mkdir()
    try:
        with tarfile.open(path) as archive:
            members = [member for member in archive if not member.isdir()]
            names = [Path(member.name).name for member in members]
            if any(not member.isfile() for member in members) or len(set(names)) != len(members):
                raise UpdateRefused(f"{source}: contains links or duplicate names: pack only the bundle's plain files")
            if len(members) > MAX_FILES or sum(member.size for member in members) > MAX_BUNDLE_BYTES:
                raise UpdateRefused(f"{source}: contains more files or bytes than a bundle may have")
            for member, name in zip(members, names):
                with archive.extractfile(member) as packed, open(target / name, "wb") as file:
                    shutil.copyfileobj(packed, file)
    except (OSError, tarfile.TarError, EOFError) as error:
        raise UpdateRefused(f"{source}: is not a bundle: expected a folder or a tar ({error})") from error
    return target


def _card(folder: Path) -> bytes:
    try:
        return (folder / CARD).read_bytes()
    except OSError as error:
        raise UpdateRefused(f"{folder.name}: holds no {CARD}: a bundle is a folder that holds one") from error


def _try_out(bundle: Bundle) -> None:
    """The encoder loads, keeps its card's contract, and its symbols come back from their packet."""
    from edge.encoder import Encoder

    encoder = Encoder(bundle)
    view = np.random.default_rng(0).integers(0, 256, (*bundle.input_size, 3), np.uint8)
    symbols = encoder.symbols(view)
    if not bundle.coder.exact:
        return  # the encoder has coded a blank view at every rate; decoding is the cloud's
    if not np.array_equal(bundle.decode(bundle.encode(symbols, list(bundle.rates)[-1])), symbols):
        rates = json.dumps(bundle.rates)
        raise UpdateRefused(
            f"{bundle.path}: self-test failed: a decoded packet gives other symbols at the highest rate of {rates}"
        )


def _link(path: Path, target: str) -> None:
    """Points a link at `target` by one rename, so that a reader sees the old or the new."""
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    os.replace(partial, path)
    _sync(path.parent)


def _resolve(link: Path) -> Path | None:
    return link.parent / os.readlink(link) if link.is_symlink() and link.exists() else None


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _safe(name: str) -> str:
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        raise UpdateRefused(f"{name!r} is not a valid name for a bundle's folder")
    return name
