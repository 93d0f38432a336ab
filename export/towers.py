"""Image networks that a codec learns from or is written for: towers of CLIPs, and timm's networks without text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from export.families.front import IMAGE_MEAN, IMAGE_STD
from synthesis.clip_source import image_size, open_clip_source, shipped_clip_path
from synthesis.fingerprint import clip_fingerprint
from thinwire.errors import ClipUnavailable

SHIPPED_CLIP = shipped_clip_path()
TIMM = "timm:"


@dataclass(frozen=True, eq=False)
class Tower:
    """An image tower. net: RGB as `front.normalise` leaves it (B, 3, height, width) → unit vectors (B, D)."""

    id: str  # NAME#fingerprint, as servers know it
    net: UnitTower
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    has_text: bool = True  # false: vectors of a network that was never trained beside texts


class UnitTower(nn.Module):
    """`Tower.net`: from the scaling of all our encoders to the tower's own mean and std (of 0..1), then the tower."""

    def __init__(self, visual: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.visual = visual
        mean_, std_ = (torch.tensor(value).view(1, 3, 1, 1) for value in (mean, std))
        self.register_buffer("scale", IMAGE_STD / 255 / std_)
        self.register_buffer("shift", (IMAGE_MEAN / 255 - mean_) / std_)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.visual(x * self.scale + self.shift)
        return nn.functional.normalize(out[0] if isinstance(out, tuple) else out, dim=-1)


def load_tower(spec: str) -> Tower:
    """The image tower of the CLIP that `spec` names, as `thinwire-cloud serve` takes it; `timm:NAME[@FILE]` for
    a network without text, its weights from a checkpoint file or from timm's hub.

    Raises `ClipUnavailable`, whose message names the fix.
    """
    if spec.startswith(TIMM):
        return _timm_tower(spec)
    source = open_clip_source(spec)
    mean, std = tuple(source.preprocess["mean"]), tuple(source.preprocess["std"])
    height, width = image_size(source.preprocess)
    return Tower(
        id=f"{source.name}#{clip_fingerprint(source.model, source.preprocess)}",
        net=UnitTower(source.model.visual, mean, std).eval().requires_grad_(False),
        height=height,
        width=width,
        mean=mean,
        std=std,
    )


def _timm_tower(spec: str) -> Tower:
    name = spec.removeprefix(TIMM).partition("@")[0]
    net, data = timm_network(spec.removeprefix(TIMM))
    (_, height, width), mean, std = data["input_size"], tuple(data["mean"]), tuple(data["std"])
    return Tower(
        id=f"timm:{name}#{clip_fingerprint(net, {'mean': mean, 'std': std, 'size': (height, width)})}",
        net=UnitTower(net, mean, std).eval().requires_grad_(False),
        height=height,
        width=width,
        mean=mean,
        std=std,
        has_text=False,
    )


def timm_network(spec: str, size: int | None = None, flag: str = "--clip") -> tuple[nn.Module, dict]:
    """timm's network `NAME` with weights of its hub, or `NAME@FILE` with a checkpoint's: pooled features out.

    size: pixels of its side, for networks that are made for one; flag: what errors call `spec`. → (network, timm's data
    configuration). Raises `ClipUnavailable`.
    """
    import timm

    name, _, file = spec.removeprefix(TIMM).partition("@")
    try:
        if file and not Path(file).is_file():
            raise ClipUnavailable(f"{flag} {spec}: there is no checkpoint {file}")
        options = {"pretrained": not file, "num_classes": 0, "checkpoint_path": ""}
        try:
            net = timm.create_model(name, **options, **({} if size is None else {"img_size": size}))
        except TypeError:  # convolutions take any size
            net = timm.create_model(name, **options)
        if file:
            weights = timm.models.load_state_dict(file)
            wanted = {key for key in net.state_dict() if not key.endswith("num_batches_tracked")}
            lacking = sorted(wanted - set(weights))
            if lacking:
                raise ClipUnavailable(f"{flag} {spec}: {file} lacks {', '.join(lacking[:3])} of timm's {name}")
            net.load_state_dict({key: value for key, value in weights.items() if key in net.state_dict()}, strict=False)
    except ClipUnavailable:
        raise
    except (
        Exception
    ) as error:  # unknown names, damaged files, an unreachable hub: timm and others raise their own kinds
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ClipUnavailable(
            f"{flag} {spec}: cannot be had ({cause}); NAME is one of timm.list_models(), "
            "NAME@/path/to/checkpoint takes its weights from a local file"
        ) from error
    return net, timm.data.resolve_model_data_config(net)


@torch.inference_mode()
def text_vectors(spec: str, texts: list[str], batch: int = 128) -> torch.Tensor:
    """Texts → unit vectors (N, D) float32 of the text tower of `spec`, a CLIP. Raises `ClipUnavailable`."""
    import open_clip

    source = open_clip_source(spec)
    try:
        tokenize = open_clip.get_tokenizer(source.tokenizer_of)
    except Exception as error:  # tokenizers of some models are fetched from the hub as well
        raise ClipUnavailable(f"the tokenizer of CLIP {source.name!r} cannot be loaded ({error})") from error
    model = source.model.eval()
    parts = [model.encode_text(tokenize(texts[i : i + batch])) for i in range(0, len(texts), batch)]
    return nn.functional.normalize(torch.cat(parts).float(), dim=-1)
