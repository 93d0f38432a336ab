"""Family `linear`: a closed-form patch transform, the floor that every network must beat. Nothing is trained.

The transform is the Karhunen-Loève transform of 16x16 RGB patches (principal axes of training patches): one strided
convolution. Bits go where reverse water-filling puts them (Kolmogorov 1956; Cover & Thomas, Elements of Information
Theory, 2nd ed., theorem 10.3.3): for Gaussian components of variance v_k a mean squared error of D a component takes
R = sum_k max(0, log2(v_k / D) / 2) bits, so at a given rate every component that is sent at all has one and the same
step (D = step² / 12), and those of less variance than the water level are not sent.

Rates are prefixes of one packet, so the water must sink from layer to layer: each layer adds new components and refines
those that are there already. Steps are 9, 3 and 1 times the finest, because a uniform quantiser of odd ratio splits
every interval of the coarser one exactly (no loss by refining, as binary dead-zone planes have). Which step of which
component comes next is decided by what each takes off the squared error for each bit of its entropy, on training
patches: the discrete form of the same water level, where a Gaussian's slope would be assumed.

The decoder is linear too: the least-squares estimate of a patch's components from the symbols of the patch and its
neighbours, for each number of layers, then the transpose of the transform. That is the best a linear decoder can do
(Wiener), and smooths the borders of patches, where the transpose alone shows blocks.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from export.entropy import entropy
from export.families.base import Family
from export.families.front import IMAGE_MEAN, IMAGE_STD
from export.rate import FixedRate
from synthesis.linear import LinearSynthesis

PATCH = 16
COMPONENTS = 96  # of 768 that are ever sent
ESTIMATED = 128  # that the decoder fills in
STEP = 1.0  # finest, of orthonormal components of pixels that span -1 to 1
COARSER = (9, 3, 1)  # times the finest step
ROUND_UP = 0.45  # values round away from zero above 1 - ROUND_UP: a little less than half, because zeros are cheap
RIDGE = 1e-3  # of the mean power of a symbol: keeps the least squares of rare symbols in hand


class LinearAnalysis(nn.Module):
    """Normalised RGB (B, 3, H, W) → whole numbers (B, C, H/16, W/16): steps of components, in the order of sending."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.transform = nn.Conv2d(3, COMPONENTS, PATCH, stride=PATCH)
        self.register_buffer("planes", torch.zeros(len(COARSER), COMPONENTS))  # 1: the component has this step
        self.register_buffer("order", torch.arange(channels))  # of channels among the (planes, components)
        self.requires_grad_(False)
        self.statistics: tuple[torch.Tensor, ...] | None = None  # what the closed-form decoder is made from

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.steps(self.transform(x)).index_select(1, self.order)

    def steps(self, components: torch.Tensor) -> torch.Tensor:
        """Components (B, K, h, w) in finest steps → whole numbers (B, 3 K, h, w), coarsest first."""
        left = torch.sign(components) * torch.floor(components.abs() + ROUND_UP)
        out = []
        for plane, coarser in enumerate(COARSER):
            out.append(torch.round(left / coarser) * self.planes[plane][:, None, None])
            left = left - coarser * out[-1]
        return torch.cat(out, dim=1)

    @torch.no_grad()
    def initialise(self, images: torch.Tensor) -> None:
        """The transform, the order of sending and what the decoder needs to know, all from normalised `images`."""
        patches = F.unfold(images, PATCH, stride=PATCH)  # (B, 768, P)
        flat = patches.transpose(1, 2).reshape(-1, patches.shape[1])
        mean = flat.mean(0)
        centred = flat - mean
        _, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
        axes = axes.flip(1).T[:ESTIMATED]  # (128, 768), by falling variance
        weight = axes[:COMPONENTS] / STEP
        self.transform.weight.copy_(weight.reshape_as(self.transform.weight))
        self.transform.bias.copy_(-(weight @ mean))
        wanted = centred @ axes.T  # (N, 128)
        self._plan((wanted[:, :COMPONENTS] / STEP).numpy())
        self.statistics = (axes, mean, wanted, self(images))

    def _plan(self, components: np.ndarray) -> None:
        """Sets planes and order from components (N, K) in finest steps: always the unit that saves most error a bit.

        A unit is a step of a component, and all coarser ones that it makes needless: where two steps together save more
        a bit than the first of them alone, only the second is sent. Channels that are left over (few photographs, few
        components) stay zero, which costs next to nothing.
        """
        left = np.sign(components) * np.floor(np.abs(components) + ROUND_UP)
        levels = [np.round(left / coarser) * coarser for coarser in COARSER]  # (N, K) each, nested
        errors = np.stack([(components**2).mean(0), *(((components - level) ** 2).mean(0) for level in levels)])
        known = [np.zeros_like(left), *levels]
        bits = {
            (before, after): entropy(((known[after] - known[before]) / COARSER[after - 1]).astype(np.int64))
            for before in range(len(COARSER))
            for after in range(before + 1, len(known))
        }
        at = np.zeros(left.shape[1], np.intp)
        chosen: list[tuple[int, int]] = []
        for _ in range(len(self.order)):
            slopes = {
                (k, after): (errors[at[k], k] - errors[after, k]) / max(bits[int(at[k]), after][k], 1e-6)
                for k in range(len(at))
                for after in range(at[k] + 1, len(known))
            }
            if not slopes:
                break
            k, after = max(slopes, key=slopes.__getitem__)
            chosen.append((after - 1, k))
            at[k] = after
        self.planes.zero_()
        for plane, k in chosen:
            self.planes[plane, k] = 1
        spare = [(plane, k) for plane in range(len(COARSER)) for k in range(left.shape[1]) if not self.planes[plane, k]]
        sent = (chosen + spare)[: len(self.order)]
        self.order.copy_(torch.tensor([plane * left.shape[1] + k for plane, k in sent]))


@torch.no_grad()
def start_decoder(net: nn.Module, analysis: LinearAnalysis, head: nn.Module) -> None:
    """The closed-form decoder; or, for a net that learns, its linear path: the transpose, each step in its place."""
    axes, mean, wanted, symbols = analysis.statistics
    to_unit = IMAGE_STD / 255  # normalised pixels → [0, 1]
    if not isinstance(net, LinearSynthesis):
        order = analysis.order.cpu()  # like the statistics
        component, step = order % COMPONENTS, STEP * torch.tensor(COARSER)[order // COMPONENTS]
        net.linear.weight.copy_((to_unit * axes[component] * step[:, None]).reshape_as(net.linear.weight))
        net.linear.bias.copy_((to_unit * mean.reshape(3, -1).mean(1)) + IMAGE_MEAN / 255)
        nn.init.zeros_(net.out[0].weight)  # what the blocks say begins at nothing
        nn.init.zeros_(net.out[0].bias)
        return
    net.patches.weight.copy_((to_unit * axes).reshape_as(net.patches.weight))
    net.mean_patch.copy_((to_unit * mean + IMAGE_MEAN / 255).reshape_as(net.mean_patch))
    count, target = len(wanted), wanted.mean(0)
    offset, gram, cross = 0.0, 0.0, 0.0
    for some, parts in zip(symbols.split(50), (wanted - target).split(50 * count // len(symbols)), strict=True):
        near = F.unfold(some, 3, padding=1).transpose(1, 2).reshape(len(parts), -1)  # (n, 9 C): would fill memory whole
        offset, gram, cross = offset + near.sum(0) / count, gram + near.T @ near / count, cross + near.T @ parts / count
    gram = gram - offset[:, None] * offset
    gram.diagonal().add_(RIDGE * gram.diagonal().mean())
    channel = torch.arange(gram.shape[0]) // 9
    net.estimate.zero_()
    for index, stop in enumerate(LINEAR_STOPS):
        sent = torch.nonzero(channel < stop)[:, 0]
        solution = torch.linalg.solve(gram[sent][:, sent], cross[sent])  # (9 C', 128)
        net.estimate[index][:, sent] = solution.T
        net.offset[index] = target - offset[sent] @ solution


LAYERS = ((0, 6), (6, 16), (16, 46), (46, 88), (88, 134), (134, 196))
LINEAR_STOPS = tuple(stop for _, stop in LAYERS)

LINEAR = Family(
    name="linear",
    channels=LINEAR_STOPS[-1],
    layers=LAYERS,
    layer_bytes=(130.0, 130.0, 250.0, 400.0, 500.0, 600.0),
    rates=(("tiny", 1), ("low", 2), ("fair", 3), ("mid", 4), ("high", 5), ("max", 6)),
    synthesis_spec={"arch": "linear", "channels": LINEAR_STOPS[-1], "layers": len(LAYERS), "components": ESTIMATED},
    decoders={
        "learned": {
            "arch": "pixels",
            "channels": LINEAR_STOPS[-1],
            "layers": len(LAYERS),
            "widths": [160, 64, 32],
            "blocks": [3, 2, 1],
        }
    },
    build_analysis=LinearAnalysis,
    start_synthesis=start_decoder,
    rate_model=FixedRate,
    start_views=1000,
    crop=160,
    tie=2,
)
