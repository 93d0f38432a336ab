"""Decoder networks: symbols → image (or CLIP embedding), in torch; and the fingerprint of a CLIP.

A room of its own because `export` trains these nets and `cloud` runs them, and those two never import each other.
Imports torch and `thinwire` only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from thinwire.errors import BadCard

if TYPE_CHECKING:
    import torch
    from torch import nn

    from thinwire.bundle import Bundle


def build(spec: dict[str, Any]) -> nn.Module:
    """The net that `spec` (a card's `cloud.synthesis`) describes, with untrained weights.

    `spec["arch"]` names it; the other keys are its arguments. Raises `BadCard` for an unknown name or bad arguments.
    """
    from synthesis.embedding import EmbeddingSynthesis
    from synthesis.linear import LinearSynthesis
    from synthesis.neck import NeckSynthesis
    from synthesis.pixels import PixelSynthesis
    from synthesis.semantic import SemanticSynthesis
    from synthesis.still import RestoreSynthesis, StillSynthesis

    archs = {
        "pixels": PixelSynthesis,
        "linear": LinearSynthesis,
        "embedding": EmbeddingSynthesis,
        "semantic": SemanticSynthesis,
        "still": StillSynthesis,
        "restore": RestoreSynthesis,
        "neck": NeckSynthesis,
    }
    kwargs = {key: value for key, value in spec.items() if key != "arch"}
    if spec.get("arch") not in archs:
        raise BadCard(f"synthesis arch {spec.get('arch')!r} is unknown; this version knows {sorted(archs)}")
    try:
        return archs[spec["arch"]](**kwargs)
    except (TypeError, ValueError) as error:
        raise BadCard(f"synthesis arguments {kwargs} do not fit arch {spec['arch']!r}: {error}") from error


def load(bundle: Bundle, device: str | torch.device = "cpu") -> nn.Module:
    """The bundle's trained decoder in eval mode on `device`.

    forward(symbols float32 (B, C, h, w), n_layers int64 (B,)) → float32 (B, 3, H, W) RGB in [0, 1], or unit CLIP
    vectors (B, D) where the card's `cloud.output` is `embedding`. Raises `BundleError` when weights are missing or do
    not fit; never runs on random weights.
    """
    import torch
    from safetensors.torch import load_file

    net = build(bundle.card.cloud["synthesis"])
    if not net.state_dict():  # nothing was trained
        return net.eval().to(device)
    weights = {name: value.float() for name, value in load_file(bundle.decoder_path).items()}
    try:
        net.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise BadCard(f"{bundle.decoder_path} does not fit the card's synthesis net: {error}") from error
    return net.eval().to(device, memory_format=torch.channels_last)
