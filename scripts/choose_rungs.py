"""Chooses each bare peer's rungs of size x quality on training photographs: benchmarks/codecs/rungs.json.

    python scripts/choose_rungs.py ../shared/data/photos-more.tar --images 40

A careful sender would fix his ladder on photographs of his own, not on those that he is judged by. For each number of
bytes in TARGETS the rung is taken that fits and keeps most of MobileNetV2's probability for its own answer to the
uncompressed view. MobileNetV2 is the one foreign network that may choose.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from benchmarks.codecs import peers as codecs
from benchmarks.codecs.peers import BARE, PEERS, Peer
from benchmarks.data.sets import load_dataset
from benchmarks.judges.networks import Network, load_network
from thinwire.imaging import canonical_view, open_image

VIEW = 224
TARGETS = (120, 180, 260, 360, 500, 680, 900, 1250, 1800, 3000)
OUT = Path(codecs.__file__).with_name("rungs.json")
VALUES = {
    "av1": (5, 15, 25, 35, 45, 60),
    "webp": (0, 5, 15, 30, 50, 70),
    "jpeg": (5, 10, 15, 25, 35, 55),
    "jxl": (15, 11, 8, 5.5, 3.5, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="training photographs")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--peers", default=",".join(BARE), help="choose for these anew and keep the others' rungs")
    args = parser.parse_args()
    data, judge = load_dataset(args.data, args.images, 1), load_network("mobilenet-v2")
    views = [canonical_view(open_image(data.read(item), item.name), VIEW, VIEW) for item in data.items]
    own = np.array(judge.answers(views))
    chosen = json.loads(OUT.read_text(encoding="utf-8")) if OUT.is_file() else {}
    for name in tqdm(args.peers.split(","), unit="peer"):
        tried = [
            tried_rung(PEERS[name], judge, views, own, side, value) for side in codecs.SIDES for value in VALUES[name]
        ]
        chosen[name] = {
            "command": f"python scripts/choose_rungs.py {args.data} --images {args.images} --peers {name}",
            "data_sha256": data.sha256,
            "n": len(views),
            "version": PEERS[name].version(),
            "rungs": best_within(tried),
        }
        OUT.write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
        for rung in chosen[name]["rungs"]:
            tqdm.write(f"{name} {rung}")


def tried_rung(peer: Peer, judge: Network, views: list, own: np.ndarray, side: int, value: float) -> dict:
    """One size and value over all views."""
    sizes, seen = [], []
    for view in views:
        sent = codecs.encode(peer, view, side, side, value)
        sizes.append(len(sent))
        seen.append(codecs.restore(peer, sent, VIEW, VIEW))
    scores = judge.scores(np.stack(seen))[:, 1:].astype(float)  # without background
    kept = scores[np.arange(len(own)), own] / np.maximum(scores.sum(1), 1)
    return {"side": side, "value": value, "bytes": round(float(np.mean(sizes)), 1), "kept": round(kept.mean(), 4)}


def best_within(tried: list[dict]) -> list[dict]:
    """For each target the best rung that fits, each once."""
    rungs: list[dict] = []
    for target in TARGETS:
        within = [each for each in tried if each["bytes"] <= target]
        if within and (best := max(within, key=lambda each: each["kept"])) not in rungs:
            rungs.append(best)
    return rungs


if __name__ == "__main__":
    main()
