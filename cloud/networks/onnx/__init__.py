"""`--runtime onnx`: CLIP and decoders in ONNX Runtime. Nothing here, nor what it imports, needs torch."""
