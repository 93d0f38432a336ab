"""What both ends of the wire must agree on: packets, entropy coding, bundles, images, labels, errors, protobuf stubs.

Imports numpy, Pillow and google-crc32c; never torch, onnxruntime or another room of this repository.
"""

__version__ = "0.1.0"
