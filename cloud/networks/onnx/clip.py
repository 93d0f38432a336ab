"""A CLIP in ONNX Runtime, from the artefact that `thinwire-export clip-onnx` writes (`synthesis.clip_artefact`)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cloud.errors import ClipUnavailable, DeviceUnavailable, InferenceFailed
from cloud.networks.onnx.session import Graph, Place, open_graph
from cloud.networks.parity import MIN_COSINE, compare
from synthesis.clip_artefact import SHIPPED, ClipArtefact, again, artefact_folder, export_command, read_artefact
from synthesis.clip_tokenizer import Tokenizer, tokenizer_of
from synthesis.probes import PROBE_TEXTS, probe_images

if TYPE_CHECKING:
    import onnxruntime as ort

log = logging.getLogger(__name__)

TEXT_BATCH = 128  # prompts per text-tower call: large enough to fill a core, small enough to stop between calls
SAME = 0.9999  # least cosine with the original's vectors of a float32 tower
INT8_COSINE = 0.98  # of an int8 tower with the original's; what it costs in answers stands on the card
PRECISIONS = ("auto", "fp32", "fp16", "int8")
FIX = "use --device cpu"
KERNELS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, eq=False)
class OnnxClip:
    """A CLIP whose towers are graphs. The same face and guarantees as `cloud.networks.clip.Clip`, numpy for tensors.

    id: of the CLIP that it was made of, so that bundles, adapters, calibrations and text heads fit both forms.
    """

    name: str
    artefact: ClipArtefact
    place: Place
    image_tower: Graph
    text_tower: Graph
    tokenize: Tokenizer
    image_height: int
    image_width: int

    @property
    def id(self) -> str:
        return self.artefact.id

    @property
    def device(self) -> str:
        return self.place.name

    @property
    def device_name(self) -> str:
        return f"{self.place.name}, ONNX Runtime"

    @property
    def embed_dim(self) -> int:
        return self.artefact.embed_dim

    @property
    def logit_scale(self) -> float:
        return self.artefact.logit_scale

    @property
    def context_length(self) -> int:
        return self.tokenize.context_length

    @property
    def nbytes(self) -> int:
        return self.image_tower.nbytes + self.text_tower.nbytes

    def fit(self, images: np.ndarray) -> np.ndarray:
        """RGB float32 (B, 3, H, W) in [0, 1] of any size → (B, 3, image_height, image_width), antialiased."""
        height, width = images.shape[-2:]
        wanted = (self.image_height, self.image_width)
        if (height, width) == wanted:
            return images
        mode = self.artefact.preprocess.get("resize_mode", "shortest")
        scales = wanted[0] / height, wanted[1] / width
        size = wanted
        if mode != "squash":
            scale = min(scales) if mode == "longest" else max(scales)
            size = (round(height * scale), round(width * scale))
        kernel = KERNELS.get(self.artefact.preprocess.get("interpolation"), KERNELS["bicubic"])
        planes = images.reshape(-1, height, width)
        resized = [np.asarray(Image.fromarray(plane).resize(size[::-1], kernel)) for plane in planes]
        images = np.stack(resized).reshape(*images.shape[:2], *size).clip(0, 1)
        top, left = (size[0] - wanted[0]) // 2, (size[1] - wanted[1]) // 2
        if mode != "longest":
            return np.ascontiguousarray(images[..., top : top + wanted[0], left : left + wanted[1]])
        fill = np.float32(float(self.artefact.preprocess.get("fill_color", 0)) / 255)
        pads = ((0, 0), (0, 0), (-top, wanted[0] - size[0] + top), (-left, wanted[1] - size[1] + left))
        return np.pad(images, pads, constant_values=fill)

    def encode_images(self, images: np.ndarray) -> np.ndarray:
        """RGB float32 (B, 3, H, W) in [0, 1] → unit vectors (B, embed_dim) float32."""
        return self.image_tower.run(images=np.ascontiguousarray(self.fit(images), np.float32))

    def encode_images_there(self, images: ort.OrtValue) -> np.ndarray:
        """As `encode_images`, of pictures of CLIP's size that are in the device's memory."""
        return self.image_tower.run_there(self.place, images=images).numpy()

    def encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Texts → unit vectors (N, embed_dim) float32. The tokenizer cuts texts beyond the tower's context length."""
        parts = [self._encode(self.tokenize(texts[i : i + TEXT_BATCH])) for i in range(0, len(texts), TEXT_BATCH)]
        return np.concatenate(parts) if parts else np.empty((0, self.embed_dim), np.float32)

    def _encode(self, tokens: np.ndarray) -> np.ndarray:
        if self.artefact.any_length:  # nothing behind the end-of-text token is seen; it has the highest id
            tokens = tokens[:, : int(tokens.argmax(axis=1).max()) + 1]
        return self.text_tower.run(tokens=np.ascontiguousarray(tokens))


def artefact_of(spec: str) -> Path:
    """The folder of `--clip SPEC`. Raises `ClipUnavailable`, whose message says how to make what is missing."""
    if (folder := artefact_folder(spec)) is not None:
        return folder
    if spec == SHIPPED:
        raise ClipUnavailable("the shipped CLIP lacks clip.json: reinstall thinwire, or run scripts/ship_graphs.py")
    raise ClipUnavailable(
        f"--runtime onnx: CLIP {spec!r} has no ONNX form. Make one {export_command(spec)}; or take --runtime torch "
        "(pip install 'thinwire[cloud-torch]')"
    )


def load_onnx_clip(spec: str, place: Place, precision: str = "auto") -> OnnxClip:
    """The CLIP that `spec` names, from its artefact, after both towers gave the original's vectors of the probes.

    precision: of the image tower, one of PRECISIONS; auto takes fp32 on a CPU, fp16 on a GPU where it is there and
    good. Raises `ClipUnavailable`, or `DeviceUnavailable` for a provider or precision that cannot be had.
    """
    artefact = read_artefact(artefact_of(spec))
    name = spec if spec == SHIPPED or not Path(spec).is_dir() else Path(spec).resolve().name
    size = artefact.preprocess["size"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    weights = artefact.weights()
    try:
        tokenize = tokenizer_of(artefact.tokenizer, artefact.folder)
        text_tower = open_graph(artefact.text_tower, place, weights, FIX, ["tokens"])
        image_tower = open_graph(artefact.image_towers["fp32"], place, weights, FIX, ["images"])
    except InferenceFailed as error:
        raise ClipUnavailable(f"{error}; {again(artefact)}") from error
    clip = OnnxClip(name, artefact, place, image_tower, text_tower, tokenize, height, width)
    _check_texts(clip)
    check_images(clip, SAME)
    return in_precision(clip, precision, weights)


def in_precision(clip: OnnxClip, wanted: str, weights: dict[str, np.ndarray]) -> OnnxClip:
    """`clip`, whose image tower is float32, with it in `wanted`. weights: all of the CLIP, or what an adapter made."""
    if wanted not in PRECISIONS:
        raise DeviceUnavailable(f"--runtime onnx has no precision {wanted!r}: use one of {', '.join(PRECISIONS)}")
    on_cpu = clip.place.kind == "cpu"
    if wanted == "auto":
        if on_cpu or "fp16" not in clip.artefact.image_towers:
            return clip
        try:
            return in_precision(clip, "fp16", weights)
        except DeviceUnavailable as error:
            log.warning("%s", error)
            return clip
    if wanted == "fp32":
        return clip
    path = clip.artefact.image_towers.get(wanted)
    if path is None:
        raise DeviceUnavailable(
            f"CLIP {clip.name!r} has no {wanted} image tower: make one "
            f"{export_command(clip.id.partition('#')[0]).replace('clip-onnx', f'clip-onnx --{wanted}', 1)}"
        )
    lowered = replace(clip, image_tower=open_graph(path, clip.place, weights, FIX, ["images"]))
    height, width = clip.image_height, clip.image_width
    images = probe_images(len(clip.artefact.images), height, width)
    parity = compare(clip.encode_images(images), lowered.encode_images(images))
    least = INT8_COSINE if wanted == "int8" else MIN_COSINE
    if parity.cosine_min < least:
        raise DeviceUnavailable(
            f"CLIP {clip.name!r} in {wanted} gives different vectors on this machine (worst cosine "
            f"{parity.cosine_min:.5f}, at least {least} is wanted): use --precision fp32 or auto"
        )
    log.info("CLIP %s: image tower in %s, worst cosine to fp32 %.5f", clip.name, wanted, parity.cosine_min)
    return lowered


def check_images(clip: OnnxClip, least: float) -> None:
    """Raises `ClipUnavailable` unless the image tower gives the original's vectors of the probe pictures."""
    images = probe_images(len(clip.artefact.images), clip.image_height, clip.image_width)
    parity = compare(clip.artefact.images, clip.encode_images(images))
    if parity.cosine_min < least:
        raise ClipUnavailable(
            f"{clip.artefact.folder}: the image tower does not give the vectors of {clip.id} (worst cosine "
            f"{parity.cosine_min:.5f}); {again(clip.artefact)}"
        )


def _check_texts(clip: OnnxClip) -> None:
    tokens = clip.tokenize(PROBE_TEXTS)
    if tokens.shape != clip.artefact.tokens.shape or (tokens != clip.artefact.tokens).any():
        raise ClipUnavailable(
            f"{clip.artefact.folder}: its tokenizer gives other tokens here than {clip.id} has; ftfy or regex may be "
            f"of another release than those it was made with; {again(clip.artefact)}"
        )
    parity = compare(clip.artefact.texts, clip.encode_texts(PROBE_TEXTS))
    if parity.cosine_min < SAME:
        raise ClipUnavailable(
            f"{clip.artefact.folder}: the text tower does not give the vectors of {clip.id} (worst cosine "
            f"{parity.cosine_min:.5f}); {again(clip.artefact)}"
        )
