"""A neck: decoded symbols → what an early block of a CLIP's image tower takes, with no picture on the way.

After Kao et al. (arXiv 2407.19651), who bridge a codec's latents into CLIP's vision transformer. Here for any tower
whose blocks lie in a row: the blocks before the entry are never run.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from synthesis.pixels import Residual, upsample
from thinwire.errors import DecoderError


@dataclass(frozen=True)
class Entry:
    """Where a neck joins a tower: the block `module`, the blocks `skipped` before it, and what the block takes.

    layout: `nchw`, `nhwc`, `nlc` or `lnc`; channels; height, width of its map or grid of tokens; prefix: tokens before
    the grid, such as the class token.
    """

    module: str
    skipped: tuple[str, ...]
    layout: str
    channels: int
    height: int
    width: int
    prefix: int = 0

    @property
    def is_tokens(self) -> bool:
        return self.layout in ("nlc", "lnc")

    def to_card(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_card(cls, value: dict[str, Any]) -> Entry:
        """Raises TypeError or KeyError for a card of another form."""
        return cls(**{**value, "skipped": tuple(value["skipped"])})

    def channels_second(self, value: torch.Tensor) -> torch.Tensor:
        """What the block takes → (B, C, h, w) or (B, C, tokens)."""
        return {
            "nchw": lambda x: x,
            "nhwc": lambda x: x.permute(0, 3, 1, 2),
            "nlc": lambda x: x.transpose(1, 2),
            "lnc": lambda x: x.permute(1, 2, 0),
        }[self.layout](value)

    def as_taken(self, value: torch.Tensor) -> torch.Tensor:
        """The inverse of `channels_second`."""
        return {
            "nchw": lambda x: x,
            "nhwc": lambda x: x.permute(0, 2, 3, 1),
            "nlc": lambda x: x.transpose(1, 2),
            "lnc": lambda x: x.permute(2, 0, 1),
        }[self.layout](value)


class NeckSynthesis(nn.Module):
    """symbols (B, channels, h, w) and layer counts (B,) → (B, out, height, width), or tokens (B, out, prefix +
    height * width).

    stride: content as large as a picture is taken in patches of so many pixels. finer: the grid is finer than that of
    the symbols, so the net doubles its own. Absent channels are zero; the learned bias of each layer count says which
    zeros are absences. `scale` and `shift` bring channels that begin alike to the
    spread and mean that the tower's own features have.
    """

    def __init__(
        self,
        channels: int,
        layers: int,
        out: int,
        height: int,
        width: int,
        prefix: int = 0,
        tokens: bool = False,
        finer: bool = True,
        stride: int = 1,
        hidden: int = 160,
        blocks: int = 4,
        fine: int = 96,
    ) -> None:
        super().__init__()
        self.size, self.tokens = (height, width), tokens
        self.gain = nn.Parameter(torch.ones(channels))
        self.layer_bias = nn.Embedding(layers + 1, hidden)
        kernel = {"kernel_size": 3, "padding": 1} if stride == 1 else {"kernel_size": stride, "stride": stride}
        self.stem = nn.Conv2d(channels, hidden, **kernel)
        self.deep = nn.Sequential(*[Residual(hidden) for _ in range(blocks)])
        self.up = upsample(hidden, fine, 2) if finer else nn.Conv2d(hidden, fine, 1)
        self.end = nn.Sequential(Residual(fine), nn.ReLU())
        self.out = nn.Conv2d(fine, out, 1)
        self.linear = nn.Conv2d(channels, out, **kernel)
        self.scale = nn.Parameter(torch.ones(out))
        self.shift = nn.Parameter(torch.zeros(out))
        self.place = nn.Parameter(torch.zeros(out, height, width)) if tokens else None
        self.prefix_base = nn.Parameter(torch.zeros(out, prefix)) if prefix else None
        self.prefix_from = nn.Linear(hidden, out * prefix) if prefix else None
        nn.init.zeros_(self.layer_bias.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        y = (symbols.permute(0, 2, 3, 1) * self.gain).permute(0, 3, 1, 2)
        deep = self.deep(self.stem(y) + self.layer_bias(n_layers)[:, :, None, None])
        x = self.out(self._fitted(self.end(self.up(deep)))) + self._fitted(self.linear(y))
        x = x * self.scale[:, None, None] + self.shift[:, None, None]
        if not self.tokens:
            return x
        x = (x + self.place).flatten(2)  # (B, out, h w)
        if self.prefix_base is None:
            return x
        first = self.prefix_from(deep.mean((2, 3))).view(x.shape[0], x.shape[1], -1) + self.prefix_base
        return torch.cat([first, x], dim=2)

    def _fitted(self, x: torch.Tensor) -> torch.Tensor:
        if tuple(x.shape[2:]) == self.size:
            return x
        return F.interpolate(x, self.size, mode="bilinear", align_corners=False)


class RestOfTower(nn.Module):
    """An image tower from its entry on: (B, C, ...) as `Entry.channels_second` has it → vectors (B, D).

    The modules before the entry are passed through with a small blank image, whose features the entry never sees.
    """

    def __init__(self, visual: nn.Module, entry: Entry, height: int, width: int) -> None:
        """Raises `DecoderError` when the tower has no such entry. `visual` stays as it is; weights are shared."""
        super().__init__()
        shared = {id(value): value for value in (*visual.parameters(), *visual.buffers())}
        self.visual = copy.deepcopy(visual, shared)
        self.entry, self._given = entry, None
        try:
            for name in entry.skipped:
                self.visual.set_submodule(name, _Through())
            block = self.visual.get_submodule(entry.module)
        except AttributeError as error:
            raise DecoderError(f"this tower has no block {entry.module!r} ({error})") from error
        block.register_forward_pre_hook(self._give)
        self.blank = (height, width)
        if not entry.is_tokens:
            self.blank = self._smallest(height, width)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        self._given = self.entry.as_taken(features)
        try:
            out = self.visual(features.new_zeros(features.shape[0], 3, *self.blank))  # len() would fix a graph's batch
        finally:
            self._given = None
        return out[0] if isinstance(out, tuple | list) else out

    def _give(self, module: nn.Module, args: tuple) -> tuple:
        return args if self._given is None else (self._given, *args[1:])

    @torch.no_grad()
    def _smallest(self, height: int, width: int) -> tuple[int, int]:
        """A blank image of 32 pixels, where the modules before the entry take one."""
        entry, some = self.entry, next(self.visual.parameters())
        features = torch.zeros(1, entry.channels, entry.height, entry.width, dtype=some.dtype, device=some.device)
        self.blank = (32, 32)
        try:
            self(features)
        except (RuntimeError, ValueError, AssertionError):
            return height, width
        return 32, 32


class _Through(nn.Module):
    """In the place of a block that is left out."""

    def forward(self, x: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return x


class NeckedTower(nn.Module):
    """A neck and the rest of its tower: symbols and layer counts → unit vectors (B, D), as a decoder into vectors."""

    def __init__(self, neck: NeckSynthesis, rest: RestOfTower) -> None:
        super().__init__()
        self.neck, self.rest = neck, rest

    def forward(self, symbols: torch.Tensor, n_layers: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.rest(self.neck(symbols, n_layers)).float(), dim=-1)
