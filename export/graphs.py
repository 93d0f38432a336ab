"""Graphs of decoders, for clouds without PyTorch: small files that hold no weights, beside the weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

import synthesis
from synthesis.clip_source import image_size, open_clip_source
from synthesis.fingerprint import clip_fingerprint
from synthesis.graph_files import graph_name
from synthesis.merging import variant_net
from synthesis.onnx_file import write_graph
from synthesis.variant import DecoderVariant
from thinwire.bundle import Bundle

KIND = "decoder"


def write_bundle_graph(bundle: Bundle, folder: Path | None = None) -> Path:
    """Writes the graph of the bundle's decoder into its folder, or into `folder`; returns the file."""
    path = (folder or bundle.path) / graph_name(KIND, bundle.card.cloud["synthesis"], bundle.latent_shape)
    _write(synthesis.load(bundle), bundle, path)
    return path


def write_variant_graph(variant: DecoderVariant, bundle: Bundle, clip: str) -> Path:
    """Writes the graph of a tuned decoder into its folder; returns the file.

    clip: as for `open_clip_source`, of a decoder into the tower. Raises `ClipUnavailable` or `DecoderError`.
    """
    variant.check_bundle(bundle)
    if variant.into == "pixels":
        net = synthesis.build(variant.spec)
    else:
        source = open_clip_source(clip)
        variant.check_clip(f"{source.name}#{clip_fingerprint(source.model, source.preprocess)}")
        net = variant_net(variant, source.model.visual, *image_size(source.preprocess))
    path = variant.path / graph_name(KIND, variant.graph_spec, bundle.latent_shape)
    _write(net, bundle, path)
    return path


def _write(net: nn.Module, bundle: Bundle, path: Path) -> None:
    example = {"symbols": torch.zeros(2, *bundle.latent_shape), "n_layers": torch.ones(2, dtype=torch.int64)}
    write_graph(net.eval().requires_grad_(False), example, "out", path)
