"""docs/service.md names every setting, every reason and every signal that an operator may meet."""

from __future__ import annotations

import re
from pathlib import Path

from cloud.config import SETTINGS
from cloud.front.status import _CODES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "service.md").read_text()


def test_every_setting_is_explained_with_its_default():
    rows = {name: row for row in PAGE.splitlines() if row.startswith("| `") for name in re.findall(r"`([\w-]+)`", row)}
    for setting in SETTINGS:
        assert setting.name in rows, f"{setting.name} is not in the table of docs/service.md"
        if isinstance(setting.default, int | float) and not isinstance(setting.default, bool):
            assert f"| {setting.default:g} |" in rows[setting.name], rows[setting.name]


def test_every_reason_is_explained_with_its_status():
    rows = [row for row in PAGE.splitlines() if re.match(r"\| [A-Z_]{5,}", row)]
    for reason, code in _CODES.items():
        assert any(re.search(rf"\b{reason}\b.*\| {code.name} \|", row) for row in rows), reason
