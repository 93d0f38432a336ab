"""The device: read an image, make its view, run the light encoder, send a packet, get labels. No torch, ever.

>>> from edge import Client                                                   # doctest: +SKIP
>>> with Client("127.0.0.1:50051") as client:                                 # doctest: +SKIP
...     print(client.classify("cat.jpg", labels=["cat", "dog"]).best.label)
cat
"""

from __future__ import annotations

_HOMES = {
    "AsyncClient": "edge.line.aio",
    "Client": "edge.line.client",
    "Encoder": "edge.encoder",
    "Outcome": "edge.line.client",
    "Prediction": "edge.line.result",
    "Result": "edge.line.result",
}


def __getattr__(name: str):
    """`edge.Client` and friends load on first use: `thinwire-edge --help` should not wait for gRPC and ONNX Runtime."""
    if name not in _HOMES:
        raise AttributeError(f"module 'edge' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
