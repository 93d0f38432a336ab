"""Stage `text_tower`: a small CLIP text transformer on CLIP's tokenizer learns to say what MiniLM says of any text."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import open_clip
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from export.clip_lite.backbones import LITE0, Backbone
from export.clip_lite.image_head import EMBED_DIM
from export.clip_lite.texts import encode_cached
from synthesis.clip_source import open_clip_source
from thinwire.errors import ClipUnavailable

CONTEXT_LENGTH = 32
WIDTH = 128


def config(backbone: Backbone) -> dict:
    """What `open_clip_config.json` says of a clip-lite on `backbone`."""
    text = {"context_length": CONTEXT_LENGTH, "vocab_size": 49408, "width": WIDTH, "heads": 4, "layers": 4}
    return {
        "model_cfg": {
            "embed_dim": EMBED_DIM,
            "vision_cfg": {
                "timm_model_name": backbone.timm_name,
                "timm_model_pretrained": False,
                "timm_pool": backbone.pool,
                "timm_proj": "mlp",
                "image_size": backbone.size,
            },
            "text_cfg": text,
        },
        "preprocess_cfg": {
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "interpolation": "bicubic",
            "resize_mode": "shortest",
        },
    }


def write_config(folder: Path, backbone: Backbone = LITE0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps(config(backbone), indent=2) + "\n")


def new_model(folder: Path, backbone: Backbone = LITE0) -> nn.Module:
    """An open_clip CLIP of clip-lite's shape with untrained weights (the image tower is filled in by `assemble`)."""
    write_config(folder, backbone)
    return open_clip.create_model(f"local-dir:{folder}", load_weights=False)


def tokenize(texts: list[str]) -> torch.Tensor:
    """CLIP BPE tokens (N, 32) int64, zero-padded; the end token has the largest id."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=CONTEXT_LENGTH)
    return tokenizer(texts)


def encode_trimmed(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """`model.encode_text` on the columns that hold tokens only: equal under a causal mask, and several times cheaper.

    tokens (B, 32) → unit vectors (B, 256).
    """
    length = int((tokens != 0).sum(1).max())
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
    x = model.ln_final(x)
    x = x[torch.arange(len(x)), tokens.argmax(1)] @ model.text_projection
    return F.normalize(x.float(), dim=1)


def text_tower_of(spec: str) -> nn.Module:
    """The open_clip model of `clip-lite` or of another clip-lite's folder.

    Raises `ClipUnavailable`, whose message names the fix.
    """
    model = open_clip_source(spec).model.eval()
    shape = getattr(getattr(model, "text_projection", None), "shape", ())
    if not hasattr(model, "token_embedding") or shape != (WIDTH, EMBED_DIM):
        raise ClipUnavailable(
            f"{spec}: its text tower is none of clip-lite's: give a folder of `thinwire-export clip-lite`"
        )
    return model


@torch.inference_mode()
def _encode(model: nn.Module, tokens: torch.Tensor, out: torch.Tensor, title: str, batch: int = 512) -> None:
    order = (tokens != 0).sum(1).argsort()  # texts of one length together: little padding
    for index in tqdm(order.split(batch), desc=title):
        out[index] = encode_trimmed(model, tokens[index])


def encode_texts(model: nn.Module, texts: list[str], title: str) -> torch.Tensor:
    """Unit vectors (N, 384) of the texts."""
    out = torch.empty(len(texts), EMBED_DIM)
    if texts:
        _encode(model, tokenize(texts), out, title)
    return out


def rotation(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(D, D) orthogonal, such that source (N, D) times it comes nearest to target (N, D): Schönemann 1966."""
    left, _, right = torch.linalg.svd(source.T @ target)
    return left @ right


def text_parameters(model: nn.Module) -> list[nn.Parameter]:
    return [p for name, p in model.named_parameters() if not name.startswith("visual.") and name != "logit_scale"]


def token_strings() -> list[str]:
    """A readable string for each BPE token, so that MiniLM can say what rare words mean before any training."""
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    out = []
    for index in range(tokenizer.vocab_size):
        text = tokenizer.decode([index]).strip()
        out.append(text or ".")
    return out


def initialise_tokens(model: nn.Module, basis: torch.Tensor) -> None:
    """Token embeddings start as the leading WIDTH axes of MiniLM's vectors of the token strings."""
    vectors = torch.from_numpy(encode_cached("tokens", token_strings()).vectors)
    with torch.no_grad():
        vectors = vectors - vectors.mean(0)
        model.token_embedding.weight.copy_(0.3 * vectors @ basis[:, :WIDTH])


def length_batches(tokens: torch.Tensor, batch: int, generator: torch.Generator):
    """Random batches of texts of similar length: shuffled, sorted inside chunks of 16 batches, shuffled again."""
    lengths = (tokens != 0).sum(1)
    order = torch.randperm(len(tokens), generator=generator)
    batches = []
    for chunk in order.split(16 * batch):
        batches.extend(chunk[lengths[chunk].argsort()].split(batch))
    for index in torch.randperm(len(batches), generator=generator).tolist():
        yield batches[index]


def distillation_loss(student: torch.Tensor, teacher: torch.Tensor, temperature: float = 0.05) -> torch.Tensor:
    """Cosine distance plus the KL between both models' similarities inside the batch (who is near whom)."""
    direct = (1 - (student * teacher).sum(1)).mean()
    mask = -1e4 * torch.eye(len(student))
    target = (teacher @ teacher.T / temperature + mask).softmax(1)
    relation = F.kl_div((student @ teacher.T / temperature + mask).log_softmax(1), target, reduction="batchmean")
    return direct + 0.2 * relation


def distil(
    model: nn.Module,
    texts: list[str],
    target: torch.Tensor,
    checkpoint: Path,
    minutes: float,
    epochs: int = 6,
    batch: int = 512,
    learning_rate: float = 2e-3,
) -> nn.Module:
    """Trains the text tower until `epochs` or `minutes` are over; `checkpoint` lets an interrupted run go on.

    target (N, D): the unit vector that each text should have."""
    generator = torch.Generator().manual_seed(0)
    tokens = tokenize(texts)
    parameters = text_parameters(model)
    optimiser = torch.optim.AdamW(parameters, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
    done, started = 0.0, time.monotonic()
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["progress"]
    first, saved = done, time.monotonic()
    total = epochs * len(tokens)
    with tqdm(total=total, initial=int(done * total), desc="text tower", unit="text") as bar:
        while done < 1.0:
            for index in length_batches(tokens, batch, generator):
                elapsed = (time.monotonic() - started) / (60 * minutes) * (1 - first)
                done = max(done + len(index) / total, first + elapsed)
                warm = min(1.0, done / 0.03)
                for group in optimiser.param_groups:
                    group["lr"] = float(learning_rate * warm * (0.5 * (1 + np.cos(np.pi * min(done, 1.0))) + 0.005))
                with torch.autocast("cpu", torch.bfloat16):
                    student = encode_trimmed(model, tokens[index])
                loss = distillation_loss(student.float(), target[index])
                optimiser.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimiser.step()
                bar.update(len(index))
                bar.set_postfix(
                    cosine=f"{(student.float() * target[index]).sum(1).mean().item():.3f}", done=f"{done:.2f}"
                )
                if time.monotonic() - saved > 60:
                    state = {"model": model.state_dict(), "optimiser": optimiser.state_dict(), "progress": float(done)}
                    torch.save(state, checkpoint)
                    saved = time.monotonic()
                if done >= 1.0:
                    break
    torch.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "progress": 1.0}, checkpoint)
    return model
