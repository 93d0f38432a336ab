"""Runs the networks on one device: stacked symbols → synthesis → CLIP → embeddings. Knows nothing of requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cloud.engine.prepared import Embedded, Prepared
from cloud.errors import CannotDecode
from cloud.networks.batch_rows import by_decoder, by_tower
from cloud.networks.clip import Clip
from cloud.networks.runtime import check_clip, run_canary

if TYPE_CHECKING:
    import torch
    from torch import nn

    from thinwire.bundle import Bundle

Loader = Callable[["Bundle", str], "nn.Module"]  # `synthesis.load`, or a test's stand-in


@dataclass(frozen=True, eq=False)
class Net:
    """A bundle's synthesis net on the device. `gives_vectors`: it decodes to CLIP embeddings, not to pixels."""

    module: nn.Module
    gives_vectors: bool

    @property
    def nbytes(self) -> int:
        return module_bytes(self.module)


class TorchRunner:
    """Synthesis nets in front of a CLIP, on one torch device.

    `bundles` are loaded for `clip` now and stay; other nets and CLIPs come with the items that use them (`load_net`).
    Runs exclude each other, so that a canary run cannot disturb the device thread. `run` raises whatever torch raises;
    the engine isolates the culprit.
    """

    def __init__(self, clip: Clip | None, bundles: Sequence[Bundle] = (), load: Loader | None = None) -> None:
        """Loads every bundle's decoder and sends a canary through it, so that a broken one fails now and by name.

        Raises `ClipMismatch` for a bundle that decodes into another CLIP's space, `BundleError` for missing weights.
        """
        self.clip = clip
        self._load = load
        self._lock = threading.Lock()
        self._nets = {bundle.model_id: self.load_net(bundle, clip) for bundle in bundles}

    def load_net(self, bundle: Bundle, clip: Clip, tuned: Net | None = None) -> Net:
        """The bundle's net on the device, or one `tuned` for `clip`, after a canary went through it and through `clip`.

        Raises `ClipMismatch`, `BundleError`, or `InferenceFailed` where the canary dies.
        """
        if (load := self._load) is None:
            from synthesis import load
        check_clip(bundle, clip)
        net = tuned or Net(load(bundle, clip.device), bundle.card.cloud["output"] == "embedding")
        run_canary(self, bundle, clip, net)
        return net

    def picture(self, item: Prepared) -> np.ndarray:
        """One decoded packet → uint8 RGB (H, W, 3). Raises `CannotDecode` for a bundle that gives vectors."""
        import torch

        net = item.net or self._nets[item.model_id]
        if net.gives_vectors:
            raise CannotDecode(f"packets of bundle {item.bundle!r} become CLIP vectors here: there is no picture")
        with self._lock, torch.inference_mode():
            pixels = self._synthesise(net, [item], (item.clip or self.clip).device)[0]  # (3, H, W) in [0, 1]
            return pixels.mul(255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()

    def run(self, batch: Sequence[Prepared]) -> Embedded:
        """Embeds a batch for one CLIP; it may mix bundles, layer counts and image files. Embeddings keep its order.

        One synthesis call per bundle, then one call per image tower (plain or adapted). Items of a bundle that decodes
        to embeddings skip the tower.
        """
        import torch

        clip = batch[0].clip or self.clip
        with self._lock, torch.inference_mode():
            clock = _Clock(clip.device)
            images: dict[int, tuple[Clip, list, list[int]]] = {}  # by image tower: its pictures and their rows
            vectors, vector_rows = [], []
            # 1. Symbols to pictures (or embeddings), one call per bundle; image files are pictures already
            for rows in by_decoder(batch):
                items = [batch[row] for row in rows]
                if not items[0].model_id:
                    pixels = _upload([item.array for item in items], torch.uint8, clip.device)  # (n, H, W, 3)
                    out, is_vector = pixels.permute(0, 3, 1, 2).float().div_(255), False
                else:
                    net = items[0].net or self._nets[items[0].model_id]
                    out, is_vector = self._synthesise(net, items, clip.device), net.gives_vectors
                if is_vector:
                    vectors.append(torch.nn.functional.normalize(out, dim=-1))
                    vector_rows += rows
                    continue
                out = clip.fit(out)
                for tower, places in by_tower([item.clip or self.clip for item in items]):
                    _, parts, tower_rows = images.setdefault(id(tower), (tower, [], []))
                    parts.append(out if len(places) == len(rows) else out[places])
                    tower_rows += [rows[place] for place in places]
            clock.mark()
            # 2. Pictures to embeddings, one call per image tower
            for tower, parts, tower_rows in images.values():
                vectors.append(tower.encode_images(torch.cat(parts) if len(parts) > 1 else parts[0]))
                vector_rows += tower_rows
            clock.mark()
            # 3. One copy back to the host for the whole batch, then the batch's own order
            stacked = (torch.cat(vectors) if len(vectors) > 1 else vectors[0]).cpu().numpy()
            synthesis_ms, clip_ms = clock.intervals_ms()
        embeddings = np.empty_like(stacked)
        embeddings[vector_rows] = stacked
        return Embedded(embeddings, synthesis_ms, clip_ms)

    @staticmethod
    def _synthesise(net: Net, items: Sequence[Prepared], device: str) -> torch.Tensor:
        """Packets of one bundle → float32 (n, 3, H, W) in [0, 1], or (n, D)."""
        import torch

        symbols = _upload([item.array for item in items], torch.int32, device).float()  # (n, C, h, w)
        counts = torch.tensor([item.n_layers for item in items], device=device)
        return net.module(symbols.contiguous(memory_format=torch.channels_last), counts).float()


def _upload(arrays: list[np.ndarray], dtype: torch.dtype, device: str) -> torch.Tensor:
    import torch

    stacked = torch.from_numpy(np.stack(arrays)).to(dtype)
    if device == "cpu":
        return stacked
    return stacked.pin_memory().to(device, non_blocking=True)


def module_bytes(module: nn.Module) -> int:
    """Bytes of its parameters and buffers. Networks or parts that run outside torch state theirs as `nbytes`."""
    if (nbytes := getattr(module, "nbytes", None)) is not None:
        return nbytes
    elsewhere = sum(getattr(part, "nbytes", 0) for part in module.modules())
    return elsewhere + sum(each.numel() * each.element_size() for each in (*module.parameters(), *module.buffers()))


class _Clock:
    """Times stages: CUDA events on a GPU, which do not block the stream; the wall clock on a CPU."""

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
