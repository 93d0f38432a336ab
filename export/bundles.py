"""A trained checkpoint → a bundle: encoder.onnx, integer tables counted on training photographs, decoder, card."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import save_file
from tqdm import tqdm

from export.families import Family
from export.families.front import IMAGE_MEAN, IMAGE_STD
from export.onnx_export import (
    Parity,
    ParityError,
    check_parity,
    encode_views,
    export_encoder,
    round_weights,
    store_half,
)
from export.photographs.collection import Photographs
from export.photographs.options import OURS
from export.quantise import quantise_encoder
from export.towers import load_tower
from export.training_loop import load_checkpoint
from synthesis.onnx_file import OPSET
from thinwire.bundle import load_bundle, write_bundle
from thinwire.errors import ThinwireError
from thinwire.imaging import canonical_view
from thinwire.tables import count_tables

SIZE = 224


class ResultsError(ThinwireError):
    """Figures that do not belong into a card; the message says why."""

    reason = "BAD_RESULTS"


def training_views(
    photographs: Photographs, count: int, seed: int = 0, size: tuple[int, int] = (SIZE, SIZE)
) -> np.ndarray:
    """`count` training photographs as the edge would see them: uint8 (count, *size, 3)."""
    ids = photographs.sample(count, seed)
    photographs.ahead(ids)
    return np.concatenate(
        [_fitted(photographs.take(ids[start : start + 64]), size) for start in range(0, len(ids), 64)]
    )


def _fitted(views: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.stack([canonical_view(Image.fromarray(view), *size) for view in views])


def make_bundle(
    family: Family, run: Path, out: Path, count: int = 3000, photographs: Photographs | None = None
) -> Path:
    """Writes bundle `out` from the checkpoint in `run`; tables are counted over `count` training photographs.

    The int8 encoder goes with it where its symbols are close enough to fp32's (see `export.quantise`). Raises
    `ParityError` when ONNX and torch disagree. The bundle is read back before the path is returned.
    """
    checkpoint = load_checkpoint(run / "checkpoint.pt", "cpu")
    if family.output == "embedding":  # of the CLIP that taught it
        family = family.answering_in(len(checkpoint["synthesis"]["fc2.weight"]))
    analysis = family.analysis()
    analysis.load_state_dict(checkpoint["analysis"])
    synthesis = family.synthesis()
    synthesis.load_state_dict(checkpoint["synthesis"])
    work = run / "bundle-work"
    work.mkdir(exist_ok=True)
    encoder = work / "encoder.onnx"
    round_weights(analysis)
    export_encoder(analysis.eval(), family.low, family.high, SIZE, encoder)
    photographs = photographs or OURS.open()
    views = training_views(photographs, count)
    encoder_int8 = work / "encoder.int8.onnx"
    try:
        parities = {"int8": _stated(quantise_encoder(encoder, encoder_int8, views[-128:], views[:64]), encoder_int8)}
    except ParityError as error:
        print(f"no int8 encoder: {error}")
        encoder_int8, parities = None, {}
    store_half(encoder)
    parity = check_parity(analysis, family.low, family.high, encoder, views[:64], tie=family.tie)
    with tqdm(total=len(views), desc="symbols of training photographs") as bar:
        symbols = encode_views(encoder, views, progress=bar.update)  # (N, C, h, w)
    tables = count_tables(symbols, layers=family.layers, context=family.context, low=family.low, high=family.high)
    decoder = work / "decoder.safetensors"
    save_file({name: value.half().contiguous() for name, value in synthesis.state_dict().items()}, decoder)
    settings = json.loads((run / "settings.json").read_text())
    wire = {
        "family": family.name,
        "input": {"height": SIZE, "width": SIZE, "resize": "shortest-crop", "filter": "bicubic"},
        "latent": {
            "channels": family.channels,
            "height": symbols.shape[2],
            "width": symbols.shape[3],
            "low": family.low,
            "high": family.high,
        },
        "layers": [{"channels": list(span)} for span in family.layers],
        "rates": [{"name": name, "layers": layers} for name, layers in family.rates],
        "context": family.context,
    }
    about = {
        "training": {
            "data": photographs.described(),
            "teachers": settings.get("teachers", ["clip-lite"]),
            "settings": settings,
            "progress": round(checkpoint["progress"], 4),
            "date": datetime.date.today().isoformat(),
            "encoder_parameters": sum(p.numel() for p in analysis.parameters()),
            "decoder_parameters": sum(p.numel() for p in synthesis.parameters()),
        },
        "parity": {**_stated(parity, encoder), **parities},  # fp32 against torch, int8 against fp32
        "metrics": {},
    }
    write_bundle(
        out,
        name=family.name,
        wire=wire,
        edge={"mean": IMAGE_MEAN / 255, "std": IMAGE_STD / 255},
        cloud={
            "output": family.output,
            "synthesis": family.synthesis_spec,
            "clip": settings.get("teachers", [load_tower("clip-lite").id])[0] if family.output == "embedding" else None,
        },
        about=about,
        tables=tables,
        encoder=encoder,
        encoder_int8=encoder_int8,
        decoder=decoder,
    )
    load_bundle(out)
    return out


def _stated(parity: Parity, encoder: Path) -> dict:
    """What a card's `about.parity` says of one encoder."""
    return {
        "images": parity.images,
        "equal_symbols": parity.equal_share,
        "mean_difference": parity.mean_difference,
        "largest_difference": parity.largest_difference,
        "bytes": encoder.stat().st_size,
        "opset": OPSET,
        "provider": "CPU",
    }


def record_metrics(folder: Path, documents: list[dict]) -> None:
    """Writes what `thinwire-bench eval` measured into the card of bundle `folder`: {data: {rate: figures}}.

    Only `about` changes, so neither the model id nor the meaning of any packet does. Raises `ResultsError` when a
    document is none of an evaluation, or measured another model.
    """
    bundle = load_bundle(folder)
    metrics: dict[str, dict] = {}
    for document in documents:
        try:
            name, measured = document["data"]["name"], document["bundle"]["model_id"]
            keys = ("bytes_mean", "top1", "top5", "top1_relative", "top1_relative_ci95", "encode_ms_p50", "n")
            metrics[name] = {
                "clip": document["clip"],
                "prompt_set": document["prompt_set"],
                **{row["rate"] or "uncompressed": {key: row[key] for key in keys} for row in document["results"]},
            }
        except (KeyError, TypeError) as error:
            raise ResultsError(f"no document of `thinwire-bench eval`: {error!r} is missing in it") from error
        if measured != bundle.model_id.hex():
            raise ResultsError(f"{name}: measured model {measured}, not {bundle.model_id.hex()}")
    path = folder / "card.json"
    card = json.loads(path.read_text())
    card["about"]["metrics"] = metrics
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    load_bundle(folder)
