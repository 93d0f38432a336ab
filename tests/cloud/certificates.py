"""Throw-away authorities and certificates for localhost, made by the openssl command line."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

CURVE = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


@dataclass(frozen=True)
class Pair:
    certificate: Path
    key: Path


def _openssl(*words: object) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=30)


def authority(folder: Path, name: str) -> Pair:
    """A self-signed certificate authority."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl command line")
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    _openssl("req", "-x509", *CURVE, "-days", 30, "-subj", f"/CN={name}", "-keyout", pair.key, "-out", pair.certificate)
    return pair


def signed(folder: Path, name: str, by: Pair) -> Pair:
    """A certificate for localhost and 127.0.0.1 whose common name is `name`."""
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n")
    _openssl("req", *CURVE, "-subj", f"/CN={name}", "-keyout", pair.key, "-out", request)
    words = ["-CA", by.certificate, "-CAkey", by.key, "-CAcreateserial", "-days", 30, "-extfile", extensions]
    _openssl("x509", "-req", "-in", request, *words, "-out", pair.certificate)
    return pair
