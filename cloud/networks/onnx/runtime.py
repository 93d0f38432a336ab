"""`--runtime onnx`: CLIPs from artefacts and decoders from graphs, in ONNX Runtime alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cloud.networks.onnx import decoders
from cloud.networks.onnx.clip import FIX, OnnxClip, artefact_of, in_precision, load_onnx_clip
from cloud.networks.onnx.runner import OnnxRunner
from cloud.networks.onnx.session import Place, open_graph, pick_place
from cloud.networks.runtime import check_clip, run_canary
from synthesis.clip_artefact import artefact_folder, read_artefact
from thinwire.errors import AdapterError
from thinwire.platforms import usable_cores

if TYPE_CHECKING:
    from cloud.networks.onnx.decoders import Decoder
    from synthesis.adapter import Adapter
    from synthesis.variant import DecoderVariant
    from thinwire.bundle import Bundle


class OnnxRuntime:
    """Networks in ONNX Runtime on one device: a `cloud.networks.runtime.Runtime`."""

    name = "onnx"

    def __init__(self, device: str = "auto", threads: int | None = None, precision: str = "auto") -> None:
        """device: as for `pick_place`; threads: of each network on a CPU (None: all cores); precision: of the image
        tower, as for `load_onnx_clip`. Raises `DeviceUnavailable`."""
        self.threads = threads or usable_cores()
        self.place: Place = pick_place(device, self.threads)
        self.device = self.place.name
        self._precision = precision
        self.runner = OnnxRunner(self.place)

    def load_clip(self, spec: str) -> tuple[OnnxClip, int]:
        clip = load_onnx_clip(spec, self.place, self._precision)
        return clip, clip.nbytes

    def load_adapted(self, spec: str, clip: OnnxClip, adapter: Adapter) -> tuple[OnnxClip, int]:
        adapter.check_clip(clip.id)
        if self._precision == "int8":
            raise AdapterError(
                f"adapter {adapter.path}: int8 towers hold weights of their own, to which it cannot be added: use "
                "--precision fp32"
            )
        prefix = "visual."
        weights = {name: value for name, value in clip.artefact.weights().items() if name.startswith(prefix)}
        weights = adapter.added_to(weights, prefix)
        tower = open_graph(clip.artefact.image_towers["fp32"], self.place, weights, FIX, ["images"])
        adapted = in_precision(replace(clip, image_tower=tower), self._precision, weights)
        canary = np.full((1, 3, clip.image_height, clip.image_width), 0.5, np.float32)
        if not np.isfinite(adapted.encode_images(canary)).all():
            raise AdapterError(f"adapter {adapter.path} makes the tower of {clip.id} give NaN: train it again")
        return adapted, adapted.image_tower.nbytes

    def load_net(
        self, bundle: Bundle, clip: OnnxClip, variant: DecoderVariant | None, spec: str
    ) -> tuple[Decoder, int]:
        check_clip(bundle, clip)
        if variant is None:
            net = decoders.load_decoder(bundle, self.place)
        else:
            variant.check_clip(clip.id)
            net = decoders.load_variant_decoder(variant, bundle, self.place, clip.artefact.weights)
        run_canary(self.runner, bundle, clip, net)
        return net, net.nbytes

    def id_of(self, spec: str) -> str | None:
        return read_artefact(artefact_of(spec)).id

    def prepare_thread(self) -> None:
        """Sessions have threads of their own."""


def why_not(clips: Sequence[str], bundles: Sequence[Bundle], variants: Sequence[DecoderVariant]) -> str | None:
    """Why these cannot be served without torch; None where they can."""
    for spec in clips:
        if artefact_folder(spec) is None:
            return f"CLIP {spec!r} has no ONNX form"
    for bundle in bundles:
        if (reason := decoders.why_not(bundle)) is not None:
            return reason
    by_id = {bundle.picture_id: bundle for bundle in bundles}
    for variant in variants:
        if (reason := decoders.why_not_variant(variant, by_id[variant.picture_id])) is not None:
            return reason
    return None
