"""The server's own CLIP and zero-shot head in this process, for pictures that need not travel one by one.

Peers are judged here, many views to a batch, because 170 operating points of 1,000 images each would spend more time
on gRPC, PNG and batches of one than on CLIP. It is equivalent to sending the decoded view as a PNG file through the
edge client: PNG is lossless, `cloud.intake.Intake` leaves a view of CLIP's size as it is, and from there on the very
same objects work (`cloud.runner.TorchRunner`, `cloud.head`, `cloud.requests.top_predictions`). Tests compare
probabilities both ways on real servers; they differ by float rounding between batch sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from benchmarks.evaluate import TOP_K, png_bytes
from cloud.clip import load_clip, pick_device
from cloud.head import HeadCache, default_cache_dir
from cloud.requests import Prediction, top_predictions
from cloud.runner import Prepared, TorchRunner
from thinwire.errors import ThinwireError
from thinwire.labels import resolve_templates, validate_labels

if TYPE_CHECKING:
    from edge.client import Client

SIMILARITY_TOLERANCE = 0.01
"""Between a server and this process: bf16 on a GPU at other batch sizes moves a cosine by a few thousandths."""


class ClipsDiffer(ThinwireError):
    """A server answers otherwise than this process does with what should be the same CLIP."""

    reason: ClassVar[str] = "CLIPS_DIFFER"


class Judge:
    """One CLIP. `batch` views are best given at once. Raises `ClipUnavailable` when there is no such CLIP."""

    def __init__(self, clip: str, device: str = "auto") -> None:
        self.clip = load_clip(clip, pick_device(device))
        self.batch = 64 if self.clip.device.startswith("cuda") else 8  # as cloud.assemble has it
        self._runner = TorchRunner(self.clip, [])
        self._heads = HeadCache(self.clip, default_cache_dir())

    @property
    def view_size(self) -> tuple[int, int]:
        """(height, width) of the views that CLIP takes."""
        return self.clip.image_height, self.clip.image_width

    def answers(
        self, views: Sequence[np.ndarray], labels: Sequence[str], prompt_set: str, top_k: int
    ) -> list[tuple[Prediction, ...]]:
        """uint8 (H, W, 3) views of `view_size` → their `top_k` labels each, best first."""
        head = self._heads.load(validate_labels(labels), resolve_templates(prompt_set))
        found: list[tuple[Prediction, ...]] = []
        for start in range(0, len(views), self.batch):
            group = views[start : start + self.batch]
            embeddings = self._runner.run([Prepared(view) for view in group]).embeddings  # (B, D)
            found += top_predictions(head, embeddings, [top_k] * len(group))
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
                    f"this process says {told}: were the weights replaced meanwhile? Start again"
                )
