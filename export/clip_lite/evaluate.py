"""Zero-shot and retrieval figures of an open_clip folder on the eval packs, loaded exactly as a user would load it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import open_clip
import torch
from torch.nn import functional as F

from export.clip_lite.align import pca_basis
from export.clip_lite.head import HEAD_FILE
from export.clip_lite.texts import corpus_texts, encode_cached
from export.photographs.collection import open_photographs
from export.photos import Pack, eval_pack
from export.teachers import MiniLM, cache_root
from synthesis.clip_source import open_clip_source
from thinwire.prompts import PROMPT_SETS

CLASSIFICATION = ("caltech101", "cifar10", "scenes", "imagenette")


class Evaluator:
    """Scores any prompt set and retrieval.

    `teacher_text` puts MiniLM in place of the text tower and the image head as it was before it met the student: what
    the distillation cost. It needs the export cache of a `thinwire-export clip-lite` run.
    """

    def __init__(self, folder: Path, teacher_text: bool = False) -> None:
        open_clip_source(str(folder))  # its errors name the fix
        self.model, _, self.preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
        self.teacher = None
        if teacher_text:
            head = torch.load(cache_root() / "clip-lite" / f"lite0-{HEAD_FILE}", weights_only=True)["head"]
            self.model.visual.head.mlp.load_state_dict(head)
            self.teacher = MiniLM()
            self.basis = pca_basis(encode_cached("corpus", corpus_texts(open_photographs())))

    @torch.inference_mode()
    def images(self, pack: Pack) -> torch.Tensor:
        """Unit vectors (N, D) of the canonical 224x224 views."""
        from PIL import Image

        out = []
        for start in range(0, len(pack.rows), 50):
            batch = torch.stack(
                [self.preprocess(Image.fromarray(np.array(im))) for im in pack.images[start : start + 50]]
            )
            out.append(F.normalize(self.model.encode_image(batch), dim=1))
        return torch.cat(out)

    @torch.inference_mode()
    def texts(self, texts: list[str]) -> torch.Tensor:
        """Unit vectors (N, D)."""
        if self.teacher:
            return F.normalize(torch.from_numpy(self.teacher.encode(texts)) @ self.basis, dim=1)
        return torch.cat(
            [
                F.normalize(self.model.encode_text(self.tokenizer(texts[i : i + 500])), dim=1)
                for i in range(0, len(texts), 500)
            ]
        )

    def classification(self, name: str, prompt_sets: tuple[str, ...] = ("1", "7", "80")) -> dict[str, dict[str, float]]:
        """Top-1 and top-5 in percent per prompt set."""
        pack = eval_pack(name)
        classes = sorted({row["class"] for row in pack.rows})
        truth = torch.tensor([classes.index(row["class"]) for row in pack.rows])
        image = self.images(pack)
        out = {}
        for prompts in prompt_sets:
            templates = PROMPT_SETS[prompts]
            texts = [template.format(c.replace("_", " ")) for c in classes for template in templates]
            head = F.normalize(self.texts(texts).reshape(len(classes), len(templates), -1).mean(1), dim=1)
            ranked = (image @ head.T).argsort(1, descending=True)
            hits = ranked[:, :5] == truth[:, None]
            out[prompts] = {
                "top1": round(100 * hits[:, 0].float().mean().item(), 1),
                "top5": round(100 * hits.any(1).float().mean().item(), 1),
            }
        return out

    def retrieval(self, name: str = "flickr8k") -> dict[str, float]:
        """R@1, R@10 in percent, text to image and image to text."""
        pack = eval_pack(name)
        captions = [row[f"caption_{k}"] for row in pack.rows for k in range(1, 6)]
        owner = torch.arange(len(pack.rows)).repeat_interleave(5)
        similarity = self.texts(captions) @ self.images(pack).T  # (5N, N)
        to_image = similarity.argsort(1, descending=True) == owner[:, None]
        to_text = owner[similarity.T.argsort(1, descending=True)] == torch.arange(len(pack.rows))[:, None]
        return {
            f"{label}_r{k}": round(100 * hits[:, :k].any(1).float().mean().item(), 1)
            for label, hits in (("text_to_image", to_image), ("image_to_text", to_text))
            for k in (1, 10)
        }

    def report(self) -> dict:
        return {
            "zero_shot": {name: self.classification(name) for name in CLASSIFICATION},
            "retrieval_flickr8k": self.retrieval(),
        }
