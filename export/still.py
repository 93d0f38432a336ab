"""`thinwire-export still` and `restore`: the bundle of the family `still`, and the network that restores its pictures.

Which size and quality a rate has was chosen on photographs that nothing was trained on (LOG.md, 2026-11-28); `RUNGS`
holds what came out. The start that frames of a rung share is counted here, on training photographs.
"""

from __future__ import annotations

import datetime
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save
from tqdm import tqdm

from export.bundles import SIZE, training_views
from export.photographs.options import OURS, PhotographOptions
from export.restoring import RestoreSettings, train_restoring
from synthesis import build as build_synthesis
from synthesis.still import restore_spec
from thinwire.bare_av1 import form_of
from thinwire.bundle import Bundle, load_bundle, write_bundle
from thinwire.errors import BundleError
from thinwire.still import FAMILY, MAX_LEAD_BYTES, Rung

NAME = FAMILY

RUNGS = {
    "tiny": (56, 20, 0.0),
    "low": (80, 20, 0.0),
    "fair": (112, 15, 0.0),
    "mid": (80, 36, 0.0),
    "high": (112, 35, 0.0),
    "max": (128, 38, 0.0),
}
"""Rate → pixels of a side, quality, and the grain that the cloud adds (standard deviation in 1/255)."""

RESTORED = {
    "tiny": (0.5, 0.0),
    "low": (0.5, 0.0),
    "fair": (0.5, 0.0),
    "mid": (0.5, 0.0),
    "high": (0.6, 3.0),
    "max": (0.6, 3.0),
}
"""Rate → strength of the restoring network that `restore` writes, and grain behind it. MobileNetV2 gained from both on
held-out photographs, other networks on other photographs did not (LOG.md, 2026-11-28): so the bundle that ships has
neither. Check with `thinwire-bench rate-accuracy --judge` before you serve a restored one."""

SPEED, TUNE = 6, "iq"
UNSEEN = 48  # photographs that training does not see


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


def restore_still(source: str | Path, settings: RestoreSettings, photographs: PhotographOptions, run: Path) -> Path:
    """Trains the network that restores the pictures of bundle `source` in the folder `run`; returns RUN/bundle.

    The new bundle's packets are those of the old one, the model id too. Raises `BundleError` for a bundle that is not
    of this family, `PhotographsError` without photographs.
    """
    bundle = load_bundle(source)
    if bundle.card.wire["family"] != FAMILY:
        raise BundleError(
            f"bundle {bundle.name!r} is of family {bundle.card.wire['family']}: stills alone are restored"
        )
    pictures = photographs.open(SIZE)
    training, unseen = pictures.split(UNSEEN)
    spec = restored_spec(bundle)
    weights = train_restoring(spec, training, unseen, settings, run)
    pictures.report()
    about = {
        "data": pictures.described(),
        "settings": asdict(settings),
        "teachers": [],
        "date": datetime.date.today().isoformat(),
    }
    return write_restored(bundle, spec, weights, {"restoring": about}, run / "bundle")


def restored_spec(bundle: Bundle) -> dict:
    """The `cloud.synthesis` of a bundle's restoring network, with strengths and grain of `RESTORED`."""
    spec = restore_spec(bundle.card.wire, bundle.card.cloud["synthesis"])
    chosen = [RESTORED.get(name, (0.0, grain)) for name, grain in zip(bundle.rates, spec["grain"])]
    return {**spec, "strength": [strength for strength, _ in chosen], "grain": [grain for _, grain in chosen]}


def write_restored(bundle: Bundle, spec: dict, weights: dict[str, torch.Tensor], about: dict, out: Path) -> Path:
    """`bundle` with the network of `spec` behind it; weights: of its trained parameters, kept as float16."""
    net = build_synthesis(spec)
    net.load_state_dict({**net.state_dict(), **weights})
    # Strengths and conditions are what `spec` says, whatever the weights were trained with
    own = dict(build_synthesis(spec).named_buffers())
    state = {name: own.get(name, value).half().contiguous() for name, value in net.state_dict().items()}
    old = bundle.card.about["training"]
    training = {**old, **about, "decoder_parameters": sum(p.numel() for p in net.parameters())}
    return write_bundle(
        out,
        name=bundle.name,
        wire=bundle.card.wire,
        symbol_model=bundle.symbol_model(),
        decoder=save(state),
        cloud={"output": "pixels", "synthesis": spec, "clip": None},
        about={"training": training, "metrics": {}},
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
