"""The features of single patches inside an open_clip image tower, taken while it works."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn


class PatchTap:
    """Keeps the last feature map (or the patch tokens) of each forward pass of an image tower.

    Known: timm towers (the map before pooling, the tokens after the last norm), open_clip's VisionTransformer (tokens
    after the last block) and ModifiedResNet (`layer4`). Of other towers `take` gives None.
    """

    def __init__(self, visual: nn.Module) -> None:
        self._kept: torch.Tensor | None = None
        self._prefix = 0  # class and register tokens before those of patches
        trunk = getattr(visual, "trunk", None)
        if trunk is not None and hasattr(trunk, "num_prefix_tokens"):
            self._prefix = trunk.num_prefix_tokens
            trunk.norm.register_forward_hook(lambda module, args, out: self._keep(out))
        elif trunk is not None:
            pool = getattr(trunk, "global_pool", None) or getattr(getattr(trunk, "head", None), "global_pool", None)
            if pool is not None:
                pool.register_forward_pre_hook(lambda module, args: self._keep(args[0]))
        elif hasattr(visual, "transformer"):
            self._prefix = 1
            visual.transformer.register_forward_hook(lambda module, args, out: self._keep(out))
        elif hasattr(visual, "layer4"):
            visual.layer4.register_forward_hook(lambda module, args, out: self._keep(out))

    def _keep(self, features: object) -> None:
        import torch

        self._kept = features.detach() if isinstance(features, torch.Tensor) else None

    def take(self) -> torch.Tensor | None:
        """Features of the pass just made, float16 (B, P, C) on the CPU; None where the tower is of no known kind."""
        features, self._kept = self._kept, None
        if features is None:
            return None
        if features.ndim == 4:  # (B, C, h, w)
            features = features.flatten(2).transpose(1, 2)
        else:  # (B, prefix + P, C)
            features = features[:, self._prefix :]
        return features.half().cpu()
