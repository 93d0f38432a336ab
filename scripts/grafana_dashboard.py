"""Writes deploy/grafana/thinwire.json. With --check, compares instead and exits 1 on a difference.

    python scripts/grafana_dashboard.py [--check]

A dashboard by hand is 900 lines of JSON in which a query is hard to find; here each panel is a line.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

TARGET = Path(__file__).resolve().parent.parent / "deploy" / "grafana" / "thinwire.json"
WHERE = 'instance=~"$instance"'


def quantile(q: float, metric: str, by: str = "") -> str:
    return f"histogram_quantile({q}, sum by (le{by}) (rate({metric}_bucket{{{WHERE}}}[$__rate_interval])))"


def rate(metric: str, by: str, more: str = "") -> str:
    return f"sum by ({by}) (rate({metric}{{{WHERE}{more}}}[$__rate_interval]))"


# (title, unit, width of 24, [(query, legend)], what it tells)
PANELS = [
    (
        "Images a second",
        "reqps",
        12,
        [(rate("thinwire_requests_total", "outcome", ',kind=~"image|"'), "{{outcome}}")],
        "By what became of them. Rejected: the queue was full.",
    ),
    (
        "Time to answer",
        "s",
        12,
        [(quantile(q, "thinwire_answer_seconds"), f"p{round(100 * q)}") for q in (0.5, 0.9, 0.99)],
        "From acceptance to answer inside the service; the net is not in it.",
    ),
    (
        "Queue",
        "short",
        8,
        [
            (f"thinwire_queue_depth{{{WHERE}}}", "waiting {{instance}}"),
            (f"thinwire_queue_limit{{{WHERE}}}", "limit {{instance}}"),
        ],
        "Accepted and unanswered.",
    ),
    (
        "Batch size",
        "short",
        8,
        [
            (quantile(0.5, "thinwire_batch_size"), "p50"),
            (quantile(0.9, "thinwire_batch_size"), "p90"),
        ],
        "Grows with load: the device takes whatever waits.",
    ),
    (
        "Where the time goes (p90)",
        "s",
        8,
        [(quantile(0.9, "thinwire_stage_seconds", ", stage"), "{{stage}}")],
        "queue, decode, head: for each image; synthesis and clip: for each batch.",
    ),
    (
        "Failures by reason",
        "reqps",
        12,
        [(rate("thinwire_requests_total", "reason", ',outcome!="answered"'), "{{reason}}")],
        "Reasons are explained in docs/service.md.",
    ),
    (
        "RPCs by status",
        "reqps",
        12,
        [(rate("thinwire_rpcs_total", "method, code"), "{{method}} {{code}}")],
        "Calls refused before the engine saw them are here alone.",
    ),
    (
        "Bytes in",
        "Bps",
        8,
        [(rate("thinwire_input_bytes_total", "source"), "{{source}}")],
        "Of answered packets and image files, without labels and transport.",
    ),
    (
        "Bytes saved",
        "Bps",
        8,
        [(rate("thinwire_saved_bytes_total", "instance"), "{{instance}}")],
        "Against an estimate of JPEGs (quality 80) of the same views.",
    ),
    (
        "Memory",
        "bytes",
        8,
        [
            (f"process_resident_memory_bytes{{{WHERE}}}", "process {{instance}}"),
            (f"thinwire_device_memory_bytes{{{WHERE}}}", "device {{state}} {{instance}}"),
        ],
        "Of the process, and of the GPU where there is one.",
    ),
    (
        "Frames kept",
        "short",
        12,
        [(f"thinwire_store_frames{{{WHERE}}}", "{{instance}}")],
        "Only with --store.",
    ),
    (
        "Frames not kept",
        "short",
        12,
        [(f"increase(thinwire_store_dropped{{{WHERE}}}[$__rate_interval])", "{{instance}}")],
        "Above 0: the disk is full, read-only or too slow.",
    ),
]


def dashboard() -> dict[str, object]:
    source = {"type": "prometheus", "uid": "${source}"}
    panels, x, y = [], 0, 0
    for number, (title, unit, width, queries, told) in enumerate(PANELS, 1):
        if x + width > 24:
            x, y = 0, y + 8
        panels.append(
            {
                "id": number,
                "type": "timeseries",
                "title": title,
                "description": told,
                "datasource": source,
                "gridPos": {"x": x, "y": y, "w": width, "h": 8},
                "fieldConfig": {"defaults": {"unit": unit, "min": 0}, "overrides": []},
                "options": {"tooltip": {"mode": "multi"}, "legend": {"displayMode": "list", "placement": "bottom"}},
                "targets": [
                    {"refId": chr(65 + at), "expr": query, "legendFormat": legend, "datasource": source}
                    for at, (query, legend) in enumerate(queries)
                ],
            }
        )
        x += width
    variables = [
        {"name": "source", "label": "Prometheus", "type": "datasource", "query": "prometheus"},
        {
            "name": "instance",
            "type": "query",
            "datasource": source,
            "query": {"query": "label_values(thinwire_queue_depth, instance)", "refId": "instances"},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "current": {"text": "All", "value": "$__all"},
        },
    ]
    return {
        "uid": "thinwire",
        "title": "thinwire",
        "schemaVersion": 41,
        "tags": ["thinwire"],
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "15s",
        "templating": {"list": variables},
        "panels": panels,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with the committed file, write nothing")
    text = json.dumps(dashboard(), indent=1) + "\n"
    if not parser.parse_args().check:
        TARGET.write_text(text, encoding="utf-8")
        return 0
    if TARGET.read_text(encoding="utf-8") == text:
        return 0
    print(f"{TARGET} differs: run python scripts/grafana_dashboard.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    raise SystemExit(main())
