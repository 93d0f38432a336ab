"""`thinwire-export still`: the bundle of the family `still`. Nothing is trained; a minute of counting.

Which size and quality a rate has was chosen on photographs that nothing was trained on (LOG.md, 2026-11-28); `RUNGS`
holds what came out. The start that frames of a rung share is counted here, on training photographs.
"""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import replace
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from export.bundles import SIZE, training_views
from export.photographs.options import OURS, PhotographOptions
from thinwire.bare_av1 import form_of
from thinwire.bundle import write_bundle
from thinwire.still import FAMILY, MAX_LEAD_BYTES, Rung

NAME = FAMILY

RUNGS = {
    "tiny": (56, 20, 4.0),
    "low": (80, 20, 4.0),
    "fair": (112, 15, 4.0),
    "mid": (80, 36, 4.0),
    "high": (112, 35, 4.0),
    "max": (128, 38, 4.0),
}
"""Rate → pixels of a side, quality, and the grain that the cloud adds (standard deviation in 1/255)."""

SPEED, TUNE = 6, "iq"


def make_still_bundle(
    out: Path,
    count: int = 96,
    rungs: dict[str, tuple[int, int, float]] = RUNGS,
    photographs: PhotographOptions = OURS,
) -> Path:
    """Writes bundle `out`; the rungs' leads are counted over `count` training photographs.

    rungs: as `RUNGS`, from the fewest bytes to the most. Raises `ForeignEncoder` where this Pillow writes no AV1.
    """
    source = photographs.open()
    views = [Image.fromarray(view) for view in training_views(source, count)]
    plain = [Rung(form_of(side, side, speed=SPEED), quality, SPEED, TUNE) for side, quality, _ in rungs.values()]
    counted, metrics = [], {}
    for name, rung in zip(rungs, tqdm(plain, desc="rungs", unit="rung")):
        frames = [rung.frame(view) for view in views]
        counted.append(replace(rung, lead=common_lead(frames)))
        cut = [1 + len(frame) - len(counted[-1].lead) * frame.startswith(counted[-1].lead) for frame in frames]
        metrics[name] = {"payload_bytes_mean": round(sum(cut) / len(cut), 1)}
    return write_bundle(
        out,
        name=NAME,
        wire={
            "family": FAMILY,
            "input": {"height": SIZE, "width": SIZE, "resize": "shortest-crop", "filter": "bicubic"},
            "stills": [rung.card() for rung in counted],
            "rates": [{"name": name, "still": number} for number, name in enumerate(rungs, 1)],
        },
        cloud={
            "output": "pixels",
            "synthesis": {"arch": "still", "grain": [grain for _, _, grain in rungs.values()], "size": [SIZE, SIZE]},
            "clip": None,
        },
        about={
            "training": {
                "data": f"{source.described()}, {len(views)} of them: leads; nothing was trained",
                "command": f"thinwire-export still --count {count} --out {out.name}",
                "teachers": [],
                "date": datetime.date.today().isoformat(),
                "encoder_parameters": 0,
                "decoder_parameters": 0,
                "rungs": metrics,
            },
            "metrics": {},
        },
    ).path


def common_lead(frames: list[bytes]) -> bytes:
    """The start that saves most bytes when it is cut off every frame that has it."""
    best, saved = b"", 0
    for length in range(1, MAX_LEAD_BYTES + 1):
        starts = Counter(frame[:length] for frame in frames if len(frame) > length)
        if not starts:
            break
        ((lead, times),) = starts.most_common(1)
        if times * length > saved:
            best, saved = lead, times * length
    return best
