"""What adapters and tuned decoders make of a CLIP's image tower in torch."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import nn

from synthesis import build
from synthesis.neck import Entry, NeckedTower, RestOfTower
from synthesis.variant import WEIGHTS
from thinwire.errors import BadCard, DecoderError

if TYPE_CHECKING:
    from synthesis.adapter import Adapter
    from synthesis.variant import DecoderVariant


def adapted_tower(adapter: Adapter, visual: nn.Module) -> nn.Module:
    """A copy of the image tower `visual` (float32) with the adapter's differences added; `visual` stays as it is.

    Raises `AdapterError` where a weight is missing there or of another shape.
    """
    merged = copy.deepcopy(visual)
    weights = dict(merged.named_parameters())
    changed = adapter.added_to({name: value.detach().cpu().numpy() for name, value in weights.items()})
    with torch.no_grad():
        for name in adapter.factors:
            weights[name].copy_(torch.from_numpy(changed[name]))
    return merged


def variant_net(variant: DecoderVariant, visual: nn.Module, height: int, width: int) -> nn.Module:
    """The tuned net on the device of `visual`, the CLIP's image tower (float32): (content float (B, C, h, w), n_layers
    (B,)) → RGB (B, 3, H, W) in [0, 1], or unit vectors (B, D) for a neck.

    height, width: of the tower's input. Raises `DecoderError` when weights, card and tower do not fit.
    """
    try:
        net = build(variant.spec)
        net.load_state_dict({name: value.float() for name, value in load_file(variant.path / WEIGHTS).items()})
        net = net.eval().requires_grad_(False).to(next(visual.parameters()).device)
        if variant.into == "pixels":
            return net.to(memory_format=torch.channels_last)
        return NeckedTower(net, RestOfTower(visual, Entry.from_card(variant.entry), height, width)).eval()
    except (BadCard, RuntimeError, TypeError, KeyError) as error:
        raise DecoderError(f"decoder {variant.path} does not fit its card or tower: {error}") from error
