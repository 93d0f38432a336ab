"""LoRA on an image tower: which of its layers, and its factors as an adapter keeps them.

Only here peft is needed; the cloud adds B A to the weights itself (`synthesis.adapter`).
"""

from __future__ import annotations

import torch
from torch import nn

NARROWEST = 8  # maps of at most 1/8 of the image's side


def target_modules(visual: nn.Module, height: int, width: int) -> list[str]:
    """Names of the layers of `visual` that learn: its dense maps from channels to channels, one position at a time.

    1x1 convolutions of one group, linear layers and self-attention that see between 2 and (height / 8) (width / 8)
    positions of one image. In a convolutional tower these are the pointwise convolutions from stride 8 on (the earlier
    ones have few channels and most of the training's work), in a transformer the attention and MLP layers of its
    blocks. Layers behind the pooling see one position and stay as they are: the space of the text tower is theirs.
    Weights that another module uses by hand (attention pools) are never called, and so never chosen.
    """
    names = {module: name for name, module in visual.named_modules()}
    most = (height // NARROWEST) * (width // NARROWEST)
    seen: dict[str, int] = {}

    def note_input(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if isinstance(module, nn.MultiheadAttention) and not _is_plain(module, args, kwargs):
            return
        fan_in = module.in_channels if isinstance(module, nn.Conv2d) else args[0].shape[-1]
        seen[names[module]] = args[0].numel() // fan_in

    hooks = [module.register_forward_pre_hook(note_input, with_kwargs=True) for module in names if _is_dense(module)]
    try:
        with torch.inference_mode():
            visual(torch.zeros(1, 3, height, width))
    finally:
        for hook in hooks:
            hook.remove()
    return [name for name, positions in seen.items() if 1 < positions <= most]


def _is_dense(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear | nn.MultiheadAttention)


def _is_plain(module: nn.MultiheadAttention, args: tuple, kwargs: dict) -> bool:
    """Self-attention without a mask, which `Attention` can stand for."""
    same = len(args) >= 3 and args[0] is args[1] is args[2]
    masked = any(kwargs.get(name) is not None for name in ("attn_mask", "key_padding_mask"))
    return same and not masked and module.in_proj_weight is not None and module.bias_k is None


class Attention(nn.Module):
    """What `nn.MultiheadAttention` computes where it attends to its own input, with linear layers that LoRA can take.

    peft 0.21 knows nn.MultiheadAttention itself, but adds the difference of `out_proj` twice in its forward pass.
    """

    def __init__(self, old: nn.MultiheadAttention) -> None:
        super().__init__()
        self.heads, self.batch_first, self.drop = old.num_heads, old.batch_first, old.dropout
        self.in_proj = nn.Linear(old.embed_dim, 3 * old.embed_dim, bias=old.in_proj_bias is not None)
        self.in_proj.weight, self.in_proj.bias = old.in_proj_weight, old.in_proj_bias
        self.out_proj = nn.Linear(old.embed_dim, old.embed_dim, bias=old.out_proj.bias is not None)
        self.out_proj.weight, self.out_proj.bias = old.out_proj.weight, old.out_proj.bias

    def forward(self, x: torch.Tensor, *_: torch.Tensor, **__: object) -> tuple[torch.Tensor, None]:
        x = x if self.batch_first else x.transpose(0, 1)  # (B, N, C)
        q, k, v = self.in_proj(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, N, C / heads)
        out = nn.functional.scaled_dot_product_attention(q, k, v, dropout_p=self.drop if self.training else 0.0)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        return (out if self.batch_first else out.transpose(0, 1)), None


def add_lora(visual: nn.Module, targets: list[str], rank: int, scale: float) -> nn.Module:
    """Puts trainable factors of `rank` beside the layers named, in place, and freezes all else. At first they add 0."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = []
    for name in targets:
        old = visual.get_submodule(name)
        if isinstance(old, nn.MultiheadAttention):
            visual.set_submodule(name, Attention(old))
            layers += [f"{name}.in_proj", f"{name}.out_proj"]
        else:
            layers.append(name)
    config = LoraConfig(r=rank, lora_alpha=scale * rank, target_modules=layers, lora_dropout=0.0)
    visual = inject_adapter_in_model(config, visual)
    for module in visual.modules():
        if hasattr(module, "cast_input_dtype_enabled"):
            module.cast_input_dtype_enabled = False  # autocast casts; to float32 and back costs a quarter of a step
    return visual


def factors_of(visual: nn.Module) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Weight name → (A (r, fan-in), B (fan-out, r)), under the names of the tower without LoRA."""
    from peft.tuners.lora import LoraLayer

    attentions = {name for name, module in visual.named_modules() if isinstance(module, Attention)}
    found = {}
    for name, module in visual.named_modules():
        if isinstance(module, LoraLayer):
            parent, _, own = name.rpartition(".")
            weight = f"{parent}.in_proj_weight" if parent in attentions and own == "in_proj" else f"{name}.weight"
            found[weight] = tuple(side["default"].weight.detach().flatten(1) for side in (module.lora_A, module.lora_B))
    return found
