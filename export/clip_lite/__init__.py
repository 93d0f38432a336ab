"""clip-lite: the small CLIP that thinwire ships so that real answers come offline.

Image tower: EfficientNet-Lite0, locked (Zhai et al. 2022, LiT, arXiv 2111.07991), plus an MLP projection.
Text tower: a small CLIP text transformer on CLIP's own BPE tokenizer, distilled from MiniLM.
Steps, each resumable and cached: `features` → `texts` → `align` → `text_tower` → `assemble` → `evaluate`.
"""
