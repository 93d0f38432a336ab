"""A trained checkpoint → a bundle: encoder.onnx, integer tables counted on training photographs, decoder, card."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tqdm import tqdm

from export.families import Family
from export.families.front import IMAGE_MEAN, IMAGE_STD
from export.onnx_export import check_parity, encode_views, export_encoder
from export.photos import train_photos
from thinwire.bundle import load_bundle, write_bundle
from thinwire.imaging import canonical_view
from thinwire.tables import count_tables

SIZE = 224


def training_views(count: int, seed: int = 0) -> np.ndarray:
    """`count` training photographs as the edge would see them: uint8 (count, 224, 224, 3)."""
    images = train_photos().images
    index = np.sort(np.random.default_rng(seed).permutation(len(images))[:count])
    return np.stack([canonical_view(Image.fromarray(images[i]), SIZE, SIZE) for i in index])


def make_bundle(family: Family, run: Path, out: Path, count: int = 3000) -> Path:
    """Writes bundle `out` from the checkpoint in `run`; tables are counted over `count` training photographs.

    Raises `ParityError` when ONNX and torch disagree. The bundle is read back before the path is returned.
    """
    checkpoint = torch.load(run / "checkpoint.pt", map_location="cpu", weights_only=True)
    analysis = family.analysis()
    analysis.load_state_dict(checkpoint["analysis"])
    synthesis = family.synthesis()
    synthesis.load_state_dict(checkpoint["synthesis"])
    work = run / "bundle-work"
    work.mkdir(exist_ok=True)
    encoder = work / "encoder.onnx"
    export_encoder(analysis.eval(), family.low, family.high, SIZE, encoder)
    views = training_views(count)
    parity = check_parity(analysis, family.low, family.high, encoder, views[:64])
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
            "data": "photos-train (10,000 photographs)",
            "tuned_for": "EfficientNet-Lite0 features, the image tower of clip-lite",
            "settings": settings,
            "progress": round(checkpoint["progress"], 4),
            "date": datetime.date.today().isoformat(),
            "encoder_parameters": sum(p.numel() for p in analysis.parameters()),
            "decoder_parameters": sum(p.numel() for p in synthesis.parameters()),
        },
        "parity": {"images": parity.images, "equal_symbols": parity.equal_share, "opset": 18, "provider": "CPU"},
        "metrics": {},
    }
    write_bundle(
        out,
        name=family.name,
        wire=wire,
        edge={"mean": IMAGE_MEAN / 255, "std": IMAGE_STD / 255},
        cloud={"output": "pixels", "synthesis": family.synthesis_spec, "clip": None},
        about=about,
        tables=tables,
        encoder=encoder,
        decoder=decoder,
    )
    load_bundle(out)
    return out


def record_metrics(folder: Path, documents: list[dict]) -> None:
    """Writes what `thinwire-bench eval` measured into the card of bundle `folder`: {data: {rate: figures}}.

    Only `about` changes, so neither the model id nor the meaning of any packet does. Raises ValueError when a document
    measured another model.
    """
    bundle = load_bundle(folder)
    metrics: dict[str, dict] = {}
    for document in documents:
        measured = document["bundle"]["model_id"]
        if measured != bundle.model_id.hex():
            raise ValueError(f"{document['data']['name']}: measured model {measured}, not {bundle.model_id.hex()}")
        keys = ("bytes_mean", "top1", "top5", "top1_relative", "top1_relative_ci95", "encode_ms_p50", "n")
        metrics[document["data"]["name"]] = {
            "clip": document["clip"],
            "prompt_set": document["prompt_set"],
            **{row["rate"] or "uncompressed": {key: row[key] for key in keys} for row in document["results"]},
        }
    path = folder / "card.json"
    card = json.loads(path.read_text())
    card["about"]["metrics"] = metrics
    path.write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n")
    load_bundle(folder)
