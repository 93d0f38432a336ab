"""TEST ONLY: an adapter of random factors for every weight matrix of a tower's transformer blocks."""

from __future__ import annotations

from pathlib import Path

from cloud.networks.clip import Clip
from synthesis.adapter import Adapter, write_adapter
from synthesis.variant import DecoderVariant
from thinwire.bundle import Bundle


def write_random_adapter(
    folder: Path,
    clip: Clip,
    bundle: Bundle,
    rates: tuple[str, ...] = ("low",),
    seed: int = 0,
    size: float = 0.2,
    decoder: DecoderVariant | None = None,
) -> Adapter:
    """An adapter of rank 2 for `bundle` at `rates`, far from zero; for the pictures of `decoder` where it is given."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, weight in clip.model.visual.named_parameters():
        if "resblocks" in name and weight.ndim == 2:
            rows, columns = weight.shape
            factors[name] = tuple(size * torch.randn(*of, generator=generator) for of in ((2, columns), (rows, 2)))
    layers = {rate: bundle.n_layers(rate) for rate in rates}
    return write_adapter(
        folder, clip=clip.id, bundle=bundle, rates=layers, scale=1.0, factors=factors, about={}, decoder=decoder
    )
