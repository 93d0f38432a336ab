"""Writes the tables of README.md from the measurements in benchmarks/results; `--check` only says whether they agree.

Each file there is the unedited JSON document of one command: `thinwire-bench eval --json`, `make demo`,
`thinwire-export clip-lite-eval`, `make edge-size`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BUNDLES = ("layered", "conv")
PACKS = ("caltech101", "imagenette", "cifar10", "scenes")


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    lines = [list(header), *rows]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def demo() -> str:
    run = read("demo")
    return (
        f"{run['images']} photographs, {run['mean_packet_bytes']:.0f} bytes each where the same view as a JPEG of "
        f"quality 75 takes {run['mean_jpeg_bytes']:.0f}; {run['edge_encode_ms_p50']:.1f} ms to encode on one core, "
        f"{run['round_trip_ms_p50']:.0f} ms for the round trip with the server on the same two cores ({run['cpu']}); "
        f"{run['top1_plausible']} of the scikit-image photographs named right among 20 labels."
    )


def codec() -> str:
    """Each bundle's uncompressed top-1 and images, then a row for each rate; a column for each pack."""
    rows = []
    for bundle in BUNDLES:
        documents = [read(f"eval-{pack}-{bundle}") for pack in PACKS]
        results = [{row["rate"]: row for row in document["results"]} for document in documents]
        plain = [f"{100 * found[None]['top1']:.1f} % of {found[None]['n']} images" for found in results]
        rows.append([bundle, "uncompressed", *plain])
        for rate in filter(None, results[0]):
            cells = []
            for found in results:
                row = found[rate]
                low, high = row["top1_relative_ci95"]
                cells.append(f"{row['top1_relative']:.2f} ({low:.2f} to {high:.2f}) at {row['bytes_mean']:.0f} B")
            rows.append([bundle, rate, *cells])
    return table(["bundle", "rate", *PACKS], rows)


def clip_lite() -> str:
    report = read("clip-lite")
    teacher = read("clip-lite-teacher-text")

    def cells(source: dict) -> list[str]:
        shot = source["zero_shot"]
        return [" / ".join(f"{shot[pack][count]['top1']:.1f}" for count in ("1", "7", "80")) for pack in PACKS]

    zero_shot = table(
        ["top-1 with 1 / 7 / 80 templates", *PACKS],
        [["clip-lite", *cells(report)], ["its image head with MiniLM as text tower", *cells(teacher)]],
    )
    columns = ("text_to_image_r1", "text_to_image_r10", "image_to_text_r1", "image_to_text_r10")
    retrieval = table(
        ["Flickr8k, 500 images", "text→image R@1", "R@10", "image→text R@1", "R@10"],
        [
            [name, *(f"{source['retrieval_flickr8k'][column]:.1f}" for column in columns)]
            for name, source in (("clip-lite", report), ("with MiniLM as text tower", teacher))
        ],
    )
    return zero_shot + "\n\n" + retrieval


def edge_size() -> str:
    run = read("edge-size")
    return (
        f"{run['edge_packages_no_pyc_mb']:.0f} MB of packages ({run['edge_packages_mb']:.0f} MB once Python has "
        f"compiled them), and {run['thinwire_mb']:.0f} MB for thinwire itself with its shipped models."
    )


FIGURES = {"demo": demo, "codec": codec, "clip-lite": clip_lite, "edge-size": edge_size}


def render(text: str) -> str:
    """README text with every figures block rewritten."""
    for name, make in FIGURES.items():
        pattern = re.compile(rf"(<!-- figures: {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"README.md has no block `<!-- figures: {name} -->`")
        body = make() + "\n"
        text = pattern.sub(lambda match, body=body: match[1] + body + match[2], text)
    return text


def main() -> int:
    path = ROOT / "README.md"
    text = path.read_text()
    wanted = render(text)
    if "--check" in sys.argv:
        if text != wanted:
            print("README.md differs from benchmarks/results: run `make figures`", file=sys.stderr)
        return int(text != wanted)
    path.write_text(wanted)
    return 0


if __name__ == "__main__":
    sys.exit(main())
