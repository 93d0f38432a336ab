"""Codec families: one module each, one interface (`base.Family`)."""

from __future__ import annotations

from export.families.base import Family
from export.families.conv import CONV
from export.families.layered import LAYERED
from export.families.linear import LINEAR
from export.families.semantic import SEMANTIC
from export.families.vae import VAE
from export.families.vq import VQ

FAMILIES = {family.name: family for family in (LINEAR, CONV, VAE, VQ, LAYERED, SEMANTIC)}

__all__ = ["FAMILIES", "Family"]
