"""The device that a training runs on."""

from __future__ import annotations

import torch

from thinwire.errors import ThinwireError


class NoSuchDevice(ThinwireError):
    """A device was asked for that is not there; nothing falls back silently."""

    reason = "DEVICE_UNAVAILABLE"


def pick_device(wanted: str) -> str:
    """`auto` (CUDA where there is one), `cpu` or `cuda[:N]` → torch's name. Raises `NoSuchDevice`."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = wanted.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise NoSuchDevice(f"unknown device {wanted!r}: use auto, cpu or cuda[:N]")
    if kind == "cuda" and (not torch.cuda.is_available() or int(index or 0) >= torch.cuda.device_count()):
        raise NoSuchDevice(f"{wanted} was asked for, torch {torch.__version__} sees {torch.cuda.device_count()} such")
    return wanted
