"""Who made a bundle: `card.json.sig` is a detached Ed25519 signature (RFC 8032) over the bytes of `card.json`.

The card holds the SHA-256 of every other file, so it is the manifest. The openssl command line signs:

    openssl genpkey -algorithm ed25519 -out signing.pem && openssl pkey -in signing.pem -pubout -out trusted.pem
    openssl pkeyutl -sign -rawin -inkey signing.pem -in card.json -out card.json.sig

A calibration beside the card is the cloud's and is not signed; the edge never reads it.
"""

from __future__ import annotations

from pathlib import Path

from edge.errors import UpdateRefused
from thinwire.bundle import CARD
from thinwire.files import read_file

SIGNATURE = f"{CARD}.sig"
SIGNATURE_BYTES = 64
MAX_KEY_BYTES = 1 << 16


def check_signature(folder: Path, public_key: Path) -> None:
    """Raises `UpdateRefused` unless `public_key` (a PEM file) made the bundle's signature.

    Needs the cryptography package (`pip install 'thinwire[edge-signed]'`): without it nothing passes.
    """
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError as error:
        raise UpdateRefused(
            "signatures need the cryptography package: install it with `pip install 'thinwire[edge-signed]'`"
        ) from error
    try:
        key = load_pem_public_key(read_file(public_key, MAX_KEY_BYTES))
    except (OSError, ValueError) as error:
        raise UpdateRefused(f"{public_key}: the public key cannot be read ({error})") from error
    if not isinstance(key, Ed25519PublicKey):
        raise UpdateRefused(f"{public_key}: is not an Ed25519 key: make one with `openssl genpkey -algorithm ed25519`")
    path = folder / SIGNATURE
    if not path.is_file():
        raise UpdateRefused(f"the bundle has no {SIGNATURE}: ask its maker for a signed one")
    if path.stat().st_size != SIGNATURE_BYTES:
        raise UpdateRefused(f"{SIGNATURE} is not an Ed25519 signature: it has {path.stat().st_size} bytes, not 64")
    try:
        key.verify(path.read_bytes(), (folder / CARD).read_bytes())
    except InvalidSignature as error:
        raise UpdateRefused(f"{SIGNATURE} was not made by the key of {public_key}: do not use this bundle") from error
