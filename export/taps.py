"""Two places inside any image network at which a codec's pictures are compared with the originals.

Found by running the network once and looking at what its modules give. Transformers: blocks of one kind in a row, whose
outputs are tokens. Convolutional networks: the last feature map of each resolution.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from synthesis.neck import Entry


@dataclass(frozen=True)
class Tap:
    """A module's name and how its output lies in memory: `nchw`, `nhwc`, `nlc` or `lnc`."""

    module: str
    layout: str

    def channels_second(self, out: torch.Tensor | tuple) -> torch.Tensor:
        """What the module gave → (B, C, ...): feature maps or tokens, channels second."""
        out = out[0] if isinstance(out, tuple | list) else out
        if self.layout == "nhwc":
            return out.permute(0, 3, 1, 2)
        if self.layout == "nlc":
            return out.transpose(1, 2)
        return out.permute(1, 2, 0) if self.layout == "lnc" else out


@dataclass(frozen=True)
class Seen:
    """An output in order of completion: module, layout, places (h, w) or (tokens,), channels."""

    tap: Tap
    places: tuple[int, ...]
    channels: int


PROBES = 2


def outputs(visual: nn.Module, height: int, width: int) -> list[Seen]:
    """Feature maps and token sequences that modules of `visual` give for an image, in the order in which they end."""
    seen: list[Seen] = []
    names = {module: name for name, module in visual.named_modules() if name}

    def note(module: nn.Module, _: tuple, out: object) -> None:
        out = out[0] if isinstance(out, tuple | list) and out else out
        if not isinstance(out, torch.Tensor):
            return
        shape = tuple(out.shape)
        aspect = height / width
        if len(shape) == 4 and shape[0] == PROBES:
            for layout, (h, w, c) in (("nchw", (shape[2], shape[3], shape[1])), ("nhwc", shape[1:])):
                if h > 1 and w > 1 and abs(h / w - aspect) < 0.3 * aspect:
                    seen.append(Seen(Tap(names[module], layout), (h, w), c))
                    return
        if len(shape) == 3 and PROBES in shape[:2]:
            layout = "nlc" if shape[0] == PROBES else "lnc"
            tokens = shape[1] if layout == "nlc" else shape[0]
            if tokens > 1:
                seen.append(Seen(Tap(names[module], layout), (tokens,), shape[2]))

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with torch.inference_mode():
            some = next(visual.parameters())
            visual(torch.zeros(PROBES, 3, height, width, dtype=some.dtype, device=some.device))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def blocks(visual: nn.Module, seen: list[Seen]) -> list[Seen]:
    """The longest row of sibling modules of one type with token outputs of one shape; empty for other networks."""
    rows: dict[tuple, list[Seen]] = defaultdict(list)
    for each in seen:
        parent, _, own = each.tap.module.rpartition(".")
        if own.isdigit() and each.tap.layout in ("nlc", "lnc"):
            kind = type(visual.get_submodule(each.tap.module))
            rows[parent, kind, each.places, each.channels].append(each)
    best = max(rows.values(), key=len, default=[])
    return best if len(best) > 1 else []


def find_taps(visual: nn.Module, height: int, width: int) -> tuple[Tap, Tap] | None:
    """(one halfway, one at the end), or None where a network shows neither maps nor tokens."""
    seen = outputs(visual, height, width)
    row = blocks(visual, seen)
    if row:
        return row[len(row) // 2 - 1].tap, row[-1].tap
    maps = [each for each in seen if len(each.places) == 2]
    if not maps:
        return None
    last = maps[-1]
    larger = [each for each in maps if each.places[0] > last.places[0]]
    if not larger:
        return last.tap, last.tap
    size = min(each.places[0] for each in larger)
    stages = [each for each in larger if each.places[0] == size]
    outermost = min(each.tap.module.count(".") for each in stages)  # a stage's end, not what the next one begins with
    return [each for each in stages if each.tap.module.count(".") == outermost][-1].tap, last.tap


STRIDE = 8  # of the map that a convolutional tower's entry takes: half the symbols' own
EARLY = 4  # a transformer's entry comes after this part of its blocks


def find_entry(visual: nn.Module, height: int, width: int) -> Entry | None:
    """Where a neck joins a tower: after a quarter of a transformer's blocks; before the first stage of a convolutional
    network whose input has stride 8. None where a network shows no such row of blocks."""
    seen = outputs(visual, height, width)
    row = blocks(visual, seen)
    if row:
        place = max(1, len(row) // EARLY)
        before, own = row[place - 1], row[place]
        tokens = before.places[0]
        grid = round((tokens * height / width) ** 0.5)
        while grid > 1 and grid * max(1, round(grid * width / height)) > tokens:
            grid -= 1
        across = max(1, round(grid * width / height))
        skipped = tuple(each.tap.module for each in row[:place])
        prefix = tokens - grid * across
        return Entry(own.tap.module, skipped, before.tap.layout, before.channels, grid, across, prefix)
    stages = _stages(seen)
    for before, own in pairwise(stages):
        if before.places[0] <= 1.25 * height / STRIDE:
            parent = own.tap.module.rpartition(".")[0]
            siblings = [each.tap.module for each in stages[: stages.index(own)]]
            skipped = tuple(name for name in siblings if name.rpartition(".")[0] == parent)
            return Entry(own.tap.module, skipped, before.tap.layout, before.channels, *before.places)
    return None


def _stages(seen: list[Seen]) -> list[Seen]:
    """Modules of the least depth at which maps of three or more sizes end, each once."""
    maps = [each for each in seen if len(each.places) == 2]
    for depth in range(12):
        level = [each for each in maps if each.tap.module.count(".") == depth]
        if len({each.places for each in level}) >= 3:
            return list({each.tap.module: each for each in level}.values())
    return []
