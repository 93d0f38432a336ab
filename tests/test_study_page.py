"""docs/study.md holds what benchmarks/results/study.json says; each part can be written from findings of its form."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def load_script():
    spec = importlib.util.spec_from_file_location("study_page", ROOT / "scripts" / "study_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


page = load_script()
FINDINGS = {
    "points": {"rate-accuracy": 74},
    "commands": ["thinwire-bench study"],
    "testbeds": [{"cpu": "test", "cores": 2, "python": "3.12"}],
    "sections": {
        "critical-rate": [
            {"group": "a", "codec": "layered", "bytes": 321.0, "ci95": [250.0, 400.0], "reason": None}
            | {"bytes_at_level": None},
            {"group": "a", "codec": "conv", "bytes": None, "ci95": None, "reason": "3 rates: a knee needs 4"}
            | {"bytes_at_level": 700.0},
        ],
        "architecture": [
            {"group": "a", "budget": 256, "first": "layered", "second": "conv", "rates": ["low", "low"]}
            | {"top1": [0.61, 0.42], "p_holm": 0.001},
            {"group": "a", "budget": 512, "first": "layered", "second": "conv", "rates": ["mid", "low"]}
            | {"top1": [0.61, 0.6], "p_holm": 0.9},
        ],
        "hierarchy": [
            {"group": "a", "lost": 10, "kept": 4, "chance": 0.25},
            {"group": "a", "lost": 0, "kept": 0, "chance": None},
        ],
    },
}


def test_the_page_agrees_with_the_results():
    assert page.main(["--check"]) == 0
    parts = re.findall(r"<!-- study: ([\w-]+) -->", page.PAGE.read_text())
    assert set(parts) == {*page.PARTS, "provenance"}


def test_parts_are_written_from_findings():
    text = page.written(page.PAGE.read_text(), FINDINGS)
    assert "321 (250 to 400)" in text
    assert "3 rates: a knee needs 4" in text
    assert "1 of 2 pairs differ" in text
    assert "| a | 2 | 10 | 4 | 0.40 | 0.25 |" in text
    assert "74 of rate-accuracy" in text
    assert page.NOT_YET in text  # sections without findings say so
    assert page.written(text, FINDINGS) == text
    assert page.written(text, None) == page.written(page.PAGE.read_text(), None)
