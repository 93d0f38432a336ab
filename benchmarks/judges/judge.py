"""The server's own CLIP and zero-shot head in this process, for pictures that need not travel one by one.

Peers are judged here, many views to a batch, because 200 operating points of 1,000 images each would spend more time
on gRPC, PNG and batches of one than on CLIP. It is equivalent to sending the decoded view as a PNG file through the
edge client: PNG is lossless, `cloud.engine.intake.Intake` leaves a view of CLIP's size as it is, and from there on the
very same objects work (`cloud.networks.clip`, `cloud.engine.text_heads`, `synthesis`). Tests compare probabilities both
ways on real servers; they differ by float rounding between batch sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from benchmarks.codecs.grid import TOP_K
from benchmarks.codecs.peers import png_bytes
from benchmarks.judges.patches import PatchTap
from cloud.engine.items import RankedLabel, top_predictions
from cloud.engine.text_heads import Head, HeadCache, default_cache_dir
from cloud.networks.batchnorm_folding import folded
from cloud.networks.clip import load_clip, pick_device
from cloud.networks.runtime import check_clip
from cloud.networks.torch_runtime import adapted_clip
from thinwire.errors import ThinwireError
from thinwire.labels import resolve_templates, validate_labels

if TYPE_CHECKING:
    import torch

    from edge.line.client import Client
    from synthesis.adapter import Adapter
    from thinwire.bundle import Bundle

SIMILARITY_TOLERANCE = 0.01
"""Between a server and this process: bf16 on a GPU at other batch sizes moves a cosine by a few thousandths."""


class ClipsDiffer(ThinwireError):
    """A server answers otherwise than this process does with what should be the same CLIP."""

    reason: ClassVar[str] = "CLIPS_DIFFER"


@dataclass(frozen=True, eq=False)
class Features:
    """What CLIP makes of a batch. embeddings: float32 (B, D) unit rows; patches: float16 (B, P, C), or None."""

    embeddings: np.ndarray
    patches: torch.Tensor | None


class Judge:
    """One CLIP. `batch` views are best given at once. With an adapter, its image tower is the adapted one.

    Raises `ClipUnavailable` when there is no such CLIP, `AdapterError` where the adapter is of another.
    """

    def __init__(self, clip: str, device: str = "auto", adapter: Adapter | None = None) -> None:
        loaded = load_clip(clip, pick_device(device))
        self.clip = folded(loaded if adapter is None else adapted_clip(loaded, adapter))
        self.batch = 64 if self.clip.device.startswith("cuda") else 8  # as cloud.networks.assemble has it
        self._heads = HeadCache(self.clip, default_cache_dir())
        self._tap = PatchTap(self.clip.model.visual)

    @property
    def view_size(self) -> tuple[int, int]:
        """(height, width) of the views that CLIP takes."""
        return self.clip.image_height, self.clip.image_width

    def embed(self, views: Sequence[np.ndarray]) -> Features:
        """uint8 (H, W, 3) views, at most `batch` of one size → what CLIP makes of them."""
        import torch

        stacked = torch.from_numpy(np.stack(views)).to(self.clip.device)  # (B, H, W, 3)
        return self.embed_tensor(stacked.permute(0, 3, 1, 2).float().div_(255))

    def embed_tensor(self, images: torch.Tensor) -> Features:
        """The same of float RGB (B, 3, H, W) in [0, 1] on CLIP's device, as a decoder leaves it."""
        embeddings = self.clip.encode_images(images).cpu().numpy()
        return Features(embeddings, self._tap.take())

    def head(self, labels: Sequence[str], templates: Sequence[str]) -> Head:
        return self._heads.load(validate_labels(labels), tuple(templates))

    def heads(self, labels: Sequence[str], prompts: Mapping[str, Sequence[str]]) -> dict[str, Head]:
        """One head for each named set of templates."""
        return {name: self.head(labels, templates) for name, templates in prompts.items()}

    def answers(
        self, views: Sequence[np.ndarray], labels: Sequence[str], prompt_set: str, top_k: int
    ) -> list[tuple[RankedLabel, ...]]:
        """uint8 (H, W, 3) views of `view_size` → their `top_k` labels each, best first."""
        head = self.head(labels, resolve_templates(prompt_set))
        found: list[tuple[RankedLabel, ...]] = []
        for start in range(0, len(views), self.batch):
            group = views[start : start + self.batch]
            found += top_predictions(head, self.embed(group).embeddings, [top_k] * len(group))
        return found

    def check_agrees(self, client: Client, view: np.ndarray, labels: Sequence[str], prompt_set: str) -> None:
        """Raises `ClipsDiffer` unless the client's server says of `view` what this process says.

        Weights may be replaced on disk between loading them here and starting the server there; families and peers
        would then be compared by two different models.
        """
        here = {each.label: each.similarity for each in self.answers([view], labels, prompt_set, TOP_K)[0]}
        for there in client.classify_file(png_bytes(view), labels, TOP_K, prompt_set).predictions:
            if abs(here.get(there.label, -1.0) - there.similarity) > SIMILARITY_TOLERANCE:
                told = ", ".join(f"{label} {similarity:.3f}" for label, similarity in here.items())
                raise ClipsDiffer(
                    f"the server gives {there.label!r} a similarity of {there.similarity:.3f}, CLIP {self.clip.id} in "
                    f"this process says {told}: if the weights were replaced meanwhile, start again"
                )


class Synthesis:
    """A bundle's decoder beside a judge's CLIP: packets → what the server's CLIP makes of them, in batches."""

    def __init__(self, bundle: Bundle, judge: Judge) -> None:
        """Raises `ClipMismatch` for a bundle that decodes into another CLIP's space, `BundleError` without weights."""
        import synthesis

        check_clip(bundle, judge.clip)
        self._bundle, self._judge = bundle, judge
        self._net = synthesis.load(bundle, judge.clip.device)
        self.gives_pixels = bundle.card.cloud["output"] == "pixels"

    def embed_packets(self, packets: Sequence[bytes]) -> tuple[Features, np.ndarray | None]:
        """Packets of one bundle → (what CLIP makes of them, the pictures uint8 (B, H, W, 3) or None)."""
        import torch

        from thinwire.packet import Packet

        parsed = [Packet.from_bytes(packet) for packet in packets]
        device = self._judge.clip.device
        symbols = torch.from_numpy(np.stack([self._bundle.decode(each) for each in parsed])).float().to(device)
        layers = torch.tensor([self._bundle.level(each) for each in parsed], device=device)
        with torch.inference_mode():
            out = self._net(symbols.contiguous(memory_format=torch.channels_last), layers).float()
            if not self.gives_pixels:
                return Features(torch.nn.functional.normalize(out, dim=-1).cpu().numpy(), None), None
            pictures = out.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return self._judge.embed_tensor(out), pictures
