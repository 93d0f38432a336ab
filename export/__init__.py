"""The workshop: trains models, exports them to ONNX, checks parity and writes bundles. Never imported at run time."""
