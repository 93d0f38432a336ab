"""`thinwire-export clip-onnx`: a CLIP of open_clip as graphs, weights and tokenizer that serve without PyTorch."""
