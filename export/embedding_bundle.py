"""Bundles of family `embedding`: an image tower on the device, whose vector is coded and decoded by one linear map."""

from __future__ import annotations

import datetime
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn
from tqdm import tqdm

from export.bundles import training_views
from export.families import embedding
from export.families.front import normalise
from export.onnx_export import ParityError, encode_views, export_encoder, store_half
from export.photographs.collection import Photographs
from export.photographs.options import OURS, PhotographOptions
from export.teachers import cache_root
from export.towers import Tower, load_tower
from synthesis import build as build_synthesis
from thinwire.bundle import write_bundle
from thinwire.tables import count_tables

PARITY_VIEWS = 64
LOST_COSINE = 1e-3  # that the encoder as stored may lose against torch


@dataclass(frozen=True, eq=False)
class Coded:
    """A tower's vectors as a codec.

    synthesis: symbols → vectors; views: uint8 (N, H, W, 3), with their vectors (N, D) and symbols.
    """

    plan: embedding.Plan
    analysis: embedding.EmbeddingAnalysis
    synthesis: nn.Module
    views: np.ndarray
    vectors: torch.Tensor
    symbols: np.ndarray  # int32 (N, C, 1, 1)

    def decoded(self, symbols: np.ndarray) -> torch.Tensor:
        """int32 (N, C, 1, 1) → unit vectors (N, D)."""
        with torch.inference_mode():
            return self.synthesis(torch.from_numpy(symbols).float(), torch.full((len(symbols),), len(self.plan.layers)))


def make_embedding_bundle(clip: str, out: Path, count: int = 3000, photographs: PhotographOptions = OURS) -> Path:
    """Writes bundle `out` of family `embedding` for the CLIP that `clip` names (see `towers.load_tower`).

    Axes, steps and tables come from `count` training photographs; there is no training. Raises `ParityError` when the
    encoder, as it is stored, does not give torch's vectors, and what `load_tower` raises.
    """
    tower = load_tower(clip)
    source = photographs.open(max(tower.height, tower.width) if photographs.images else None)
    coded = code_tower(tower, source, count)
    source.report()
    training = {
        "data": f"{source.described()}, {len(coded.views)} of them: axes, steps and tables; nothing was trained",
        "tuned_for": tower.id,
    }
    return write_embedding_bundle(out, bundle_name("embedding", tower.id), tower, tower.id, coded, training)


def code_tower(tower: Tower, photographs: Photographs, count: int) -> Coded:
    """Fits the codec of a tower's vectors to `count` photographs."""
    views = training_views(photographs, count, size=(tower.height, tower.width))
    vectors = []
    with torch.inference_mode():
        for start in tqdm(range(0, len(views), 8), desc="vectors of training photographs"):
            pixels = torch.from_numpy(views[start : start + 8]).permute(0, 3, 1, 2)  # channels last in memory
            vectors.append(tower.net(normalise(pixels)))
        vectors = torch.cat(vectors)  # (N, D)
        plan = embedding.fit_plan(vectors.numpy())
        analysis = embedding.EmbeddingAnalysis(tower, plan).eval()
        symbols = analysis.symbols(vectors).to(torch.int32)[:, :, None, None].numpy()  # (N, C, 1, 1)
    synthesis = build_synthesis({"arch": "embedding", "channels": symbols.shape[1], "dim": vectors.shape[1]})
    synthesis.load_state_dict(plan.synthesis_weights())
    return Coded(plan, analysis, synthesis, views, vectors, symbols)


def bundle_name(kind: str, clip_id: str) -> str:
    """KIND-CLIP, as a bundle may be called."""
    return f"{kind}-{re.sub('[^A-Za-z0-9._-]+', '-', clip_id.partition('#')[0])}"[:64]


def write_embedding_bundle(
    out: Path,
    name: str,
    tower: Tower,
    clip_id: str,
    coded: Coded,
    training: dict[str, Any],
    finish: Callable[[Path], tuple[bytes | None, dict[str, Any]]] = lambda encoder: (None, {}),
) -> Path:
    """Writes bundle `out`, whose packets decode into the image space of the CLIP `clip_id` (NAME#fingerprint).

    training: what its card says of that. finish: gets encoder.onnx as it is stored; gives the int8 encoder (None: none)
    and more of the card's parity. Raises `ParityError` when the encoder does not give torch's vectors.
    """
    plan, symbols, views = coded.plan, coded.symbols, coded.views[:PARITY_VIEWS]
    wanted = coded.vectors[: len(views)]
    weights = plan.synthesis_weights()
    with tempfile.TemporaryDirectory() as folder:
        encoder = Path(folder) / "encoder.onnx"
        export_encoder(coded.analysis, -plan.high, plan.high, (tower.height, tower.width), encoder)
        store_half(encoder)
        got = encode_views(encoder, views)
        cosine = float((coded.decoded(got) * wanted).sum(1).min())
        torchs = float((coded.decoded(symbols[: len(views)]) * wanted).sum(1).min())
        if cosine < torchs - LOST_COSINE:
            raise ParityError(
                f"encoder.onnx decodes to cosine {cosine:.5f} with torch's vectors, torch to {torchs:.5f}"
            )
        int8, parity = finish(encoder)
        data = encoder.read_bytes()
    return write_bundle(
        out,
        name=name,
        wire={
            "family": embedding.NAME,
            "input": {"height": tower.height, "width": tower.width, "resize": "shortest-crop", "filter": "bicubic"},
            "latent": {"channels": symbols.shape[1], "height": 1, "width": 1, "low": -plan.high, "high": plan.high},
            "layers": [{"channels": list(span)} for span in plan.layers],
            "rates": [{"name": name, "layers": layers} for name, layers in plan.rates],
            "context": "none",
        },
        edge={"mean": list(tower.mean), "std": list(tower.std)},
        cloud={
            "output": "embedding",
            "synthesis": {"arch": "embedding", "channels": symbols.shape[1], "dim": coded.vectors.shape[1]},
            "clip": clip_id,
        },
        about={
            "training": {
                **training,
                "date": datetime.date.today().isoformat(),
                "encoder_parameters": sum(p.numel() for p in tower.net.parameters()),
                "decoder_parameters": sum(p.numel() for p in coded.synthesis.parameters()),
            },
            "parity": {
                "images": len(got),
                "equal_symbols": float((got == symbols[: len(got)]).mean()),
                "least_cosine": {"onnx": cosine, "torch": torchs},
                "opset": 18,
                "provider": "CPU",
                **parity,
            },
            "metrics": {},
        },
        tables=count_tables(symbols, layers=plan.layers, low=-plan.high, high=plan.high),
        encoder=data,
        encoder_int8=int8,
        decoder=save({name: value.half().contiguous() for name, value in weights.items()}),
    ).path


def cached_embedding_bundle(clip: str) -> Path:
    """The bundle of `make_embedding_bundle` in the export cache, made if it is not there. Raises what that raises."""
    name = re.sub("[^A-Za-z0-9._-]+", "-", load_tower(clip).id)
    folder = cache_root() / "bundles" / name
    if not folder.exists():
        folder.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as work:
            make_embedding_bundle(clip, Path(work) / name).rename(folder)
    return folder
