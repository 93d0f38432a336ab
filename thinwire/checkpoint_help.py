"""What a checkpoint file is, from its first bytes: the one place that explains those that cannot be loaded."""

from __future__ import annotations

import zipfile
from pathlib import Path

HEAD_BYTES = 4096


def explained(path: Path) -> str | None:
    """Why the file is no checkpoint, and the fix; None where it may be one."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
        size = path.stat().st_size
    except OSError as error:
        return f"it cannot be read ({error.strerror or error}): check its permissions"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not head:
        return "the file is empty (0 bytes): download it again"
    if head.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file: run `git lfs pull` in its repository"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")) or b"<html" in text[:512]:
        return "it is an HTML page, not a checkpoint: download the file itself (a login or an error page was saved)"
    if text.startswith((b"{", b"[")) and size < 1 << 20:
        return "it is JSON text, not a checkpoint: name the file with the weights beside it"
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return "it is an archive: unpack it, and name the checkpoint inside"
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        return "it is cut: the end of the file is missing, download it again"
    return None


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive, the form of OpenAI's own CLIP files."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    return any(name.endswith("/constants.pkl") or "/code/" in name for name in names)


def torchscript_fix(path: Path) -> str:
    """How to take the weights out of such a file. Loading it runs nothing of it, but asks for trust in its source."""
    made = path.with_name(f"{path.stem}-weights.pt")
    return (
        "it is a TorchScript archive (the form of OpenAI's own files): take its weights out once, if you trust its "
        f"source, with `python -c \"import torch; s = torch.jit.load('{path}', 'cpu').state_dict(); "
        "[s.pop(k, None) for k in ('input_resolution', 'context_length', 'vocab_size')]; "
        f"torch.save(s, '{made}')\"` and name {made}; OpenAI's need an architecture like ViT-B-32-quickgelu"
    )
