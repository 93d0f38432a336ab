"""Codec families: one module each, one interface (`base.Family`)."""

from __future__ import annotations

from export.families.base import Family
from export.families.conv import CONV
from export.families.layered import LAYERED
from export.families.semantic import SEMANTIC

FAMILIES = {family.name: family for family in (CONV, LAYERED, SEMANTIC)}

__all__ = ["FAMILIES", "Family"]
