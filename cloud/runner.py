"""The device side: stacked symbols → synthesis → CLIP → embeddings. Runs on one thread and knows no requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from cloud.clip import Clip
from cloud.errors import ClipMismatch, InferenceFailed

if TYPE_CHECKING:
    import torch
    from torch import nn

    from thinwire.bundle import Bundle

Loader = Callable[["Bundle", str], "nn.Module"]  # `synthesis.load`, or a test's stand-in


@dataclass(frozen=True, eq=False)
class Prepared:
    """One decoded input: with a bundle, `array` is its symbols int32 (C, h, w); without, a view uint8 RGB (H, W, 3).

    Bundles are told apart by `model_id`; two generations of one codec may share a name.
    """

    array: np.ndarray
    bundle: str | None = None
    n_layers: int = 0
    model_id: bytes = b""


@dataclass(frozen=True, eq=False)
class Embedded:
    """embeddings float32 (B, D), unit rows, in the order of the input; where the time went, in milliseconds."""

    embeddings: np.ndarray
    synthesis_ms: float
    clip_ms: float


class Runner(Protocol):
    """What the engine needs of a device; tests put their own in its place."""

    def run(self, batch: Sequence[Prepared]) -> Embedded: ...


class TorchRunner:
    """Synthesis nets of several bundles in front of one CLIP, on one torch device.

    `run` is called from one thread at a time. It raises whatever torch raises; the engine isolates the culprit.
    """

    def __init__(self, clip: Clip, bundles: Sequence[Bundle], load: Loader | None = None) -> None:
        """Loads every bundle's decoder and sends a canary through it, so that a broken one fails now and by name.

        Raises `ClipMismatch` for a bundle that decodes into another CLIP's space, `BundleError` for missing weights.
        """
        if load is None:
            from synthesis import load
        self.clip = clip
        self._nets: dict[bytes, tuple[nn.Module, bool]] = {}
        for bundle in bundles:
            self._nets[bundle.model_id] = self._load(bundle, load)
            self._canary(bundle)

    def _load(self, bundle: Bundle, load: Loader) -> tuple[nn.Module, bool]:
        is_embedding = bundle.card.cloud["output"] == "embedding"
        check_clip(bundle, self.clip)
        return load(bundle, self.clip.device), is_embedding

    def _canary(self, bundle: Bundle) -> None:
        symbols = np.zeros(bundle.latent_shape, np.int32)
        layers = len(bundle.card.wire["layers"])
        try:
            got = self.run([Prepared(symbols, bundle.name, layers, bundle.model_id)]).embeddings
        except Exception as error:
            raise InferenceFailed(f"bundle {bundle.name!r} failed its canary run: {error}") from error
        if got.shape != (1, self.clip.embed_dim):
            raise ClipMismatch(
                f"bundle {bundle.name!r} gives vectors of {got.shape[1]} values, "
                f"CLIP {self.clip.name!r} has {self.clip.embed_dim}: serve it with the CLIP it was trained for"
            )

    def run(self, batch: Sequence[Prepared]) -> Embedded:
        """A mixed batch (several bundles, layer counts, image files) → embeddings in its order.

        One synthesis call per bundle, then one CLIP call over all images; embeddings from bundles skip CLIP.
        """
        import torch

        with torch.inference_mode():
            clock = _Clock(self.clip.device)
            groups: dict[object, list[int]] = {}
            for index, item in enumerate(batch):
                groups.setdefault(item.model_id or item.array.shape, []).append(index)
            images, image_rows, vectors, vector_rows = [], [], [], []
            for rows in groups.values():
                items = [batch[row] for row in rows]
                if not items[0].model_id:
                    pixels = self._upload([item.array for item in items], torch.uint8)  # (n, H, W, 3)
                    out, is_vector = pixels.permute(0, 3, 1, 2).float().div_(255), False
                else:
                    net, is_vector = self._nets[items[0].model_id]
                    symbols = self._upload([item.array for item in items], torch.int32).float()  # (n, C, h, w)
                    counts = torch.tensor([item.n_layers for item in items], device=self.clip.device)
                    out = net(symbols.contiguous(memory_format=torch.channels_last), counts).float()
                if is_vector:
                    vectors.append(torch.nn.functional.normalize(out, dim=-1))
                    vector_rows += rows
                else:
                    images.append(self.clip.fit(out))
                    image_rows += rows
            clock.mark()
            if images:
                vectors.insert(0, self.clip.encode_images(torch.cat(images) if len(images) > 1 else images[0]))
            clock.mark()
            stacked = (torch.cat(vectors) if len(vectors) > 1 else vectors[0]).cpu().numpy()
            synthesis_ms, clip_ms = clock.intervals_ms()
        embeddings = np.empty_like(stacked)
        embeddings[image_rows + vector_rows] = stacked
        return Embedded(embeddings, synthesis_ms, clip_ms)

    def _upload(self, arrays: list[np.ndarray], dtype: torch.dtype) -> torch.Tensor:
        import torch

        stacked = torch.from_numpy(np.stack(arrays)).to(dtype)
        if self.clip.device == "cpu":
            return stacked
        return stacked.pin_memory().to(self.clip.device, non_blocking=True)


def check_clip(bundle: Bundle, clip: Clip) -> None:
    """Raises `ClipMismatch` when `bundle` decodes into the embedding space of another CLIP.

    Bundles that decode to pixels serve any CLIP; the one named in their card is only the one they were tuned for.
    """
    wanted = bundle.card.cloud.get("clip")
    if bundle.card.cloud["output"] == "embedding" and wanted and not clip.matches(wanted):
        name, hash_sign, _ = wanted.partition("#")
        fix = f"serve it with --clip {name}"
        if hash_sign and name == clip.name:
            fix = f"the name is the same, the weights are not: make the bundle again from this {name}"
        raise ClipMismatch(
            f"bundle {bundle.name!r} decodes into the embedding space of CLIP {wanted!r}, this server runs "
            f"{clip.id if hash_sign else clip.name!r}: {fix}"
        )


class _Clock:
    """Times stages without stopping a CUDA stream: events there, the wall clock on the CPU."""

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._marks: list = []
        self.mark()

    def mark(self) -> None:
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def intervals_ms(self) -> list[float]:
        """Between successive marks; on CUDA only after the results were copied back (which waits for the stream)."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._cuda:
            return [first.elapsed_time(second) for first, second in pairs]
        return [(second - first) * 1000 for first, second in pairs]
