"""A real server on a free port, its client stub and its insides; and the requests and refusals that tests share."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from PIL import Image

from cloud.engine.engine import Engine
from cloud.engine.intake import Intake
from cloud.engine.text_heads import HeadCache
from cloud.front.server import background_server
from cloud.networks.runner import TorchRunner
from cloud.watch.assemble import Watch
from tests.cloud.fixed_models import FixedModels
from thinwire.v1 import inference_pb2 as pb
from thinwire.v1 import inference_pb2_grpc, search_pb2_grpc

LABELS = ["cat", "dog", "  car ", "", "cat"]


class HeldRunner:
    """The real runner behind a gate, so that tests decide when the device is free."""

    def __init__(self, runner):
        self.runner = runner
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()

    def run(self, batch):
        self.busy.set()
        assert self.gate.wait(60), "the test never opened the gate"
        return self.runner.run(batch)

    def picture(self, item):
        return self.runner.picture(item)


class Served:
    """A running server with its client stub and its insides."""

    def __init__(self, clip, bundle, limits=None, options=None, security=None, credentials=None, watch=None):
        self.runner = HeldRunner(TorchRunner(clip, [bundle]))
        intake = Intake([bundle], clip.image_height, clip.image_width)
        self.engine = Engine(self.runner, FixedModels(intake, HeadCache(clip)), limits, log_errors=False)
        self.watch = Watch(self.engine, watch) if watch else None
        self._serving = background_server(self.engine, options=options, security=security, watch=self.watch)
        self.address = self._serving.__enter__()
        words = [("grpc.max_send_message_length", -1)]
        if credentials:
            self.channel = grpc.secure_channel(self.address, credentials, options=words)
        else:
            self.channel = grpc.insecure_channel(self.address, options=words)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.search = search_pb2_grpc.SearchServiceStub(self.channel)

    def get(self, path, data=None, **headers):
        """(status, body) from the HTTP port; the body parsed where it is JSON."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.watch.web_port}{path}", data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as reply:
                status, kind, body = reply.status, reply.headers["Content-Type"], reply.read()
        except urllib.error.HTTPError as error:
            status, kind, body = error.code, error.headers["Content-Type"], error.read()
        return status, json.loads(body) if "json" in kind else body

    def close_server(self):
        """Stops gracefully; a second time does nothing."""
        serving, self._serving = self._serving, contextlib.nullcontext()
        serving.__exit__(None, None, None)

    def close(self):
        self.runner.gate.set()
        self.close_server()
        self.channel.close()

    def hold(self, request):
        """Closes the gate and occupies the device with `request`; returns its call."""
        self.runner.gate.clear()
        self.runner.busy.clear()
        call = self.stub.Classify.future(request, timeout=60)
        assert self.runner.busy.wait(60)
        return call


def classify(packet: bytes | None = None, labels=LABELS, image_file=b"", **fields) -> pb.ClassifyRequest:
    image = pb.ImageInput(packet=packet) if packet is not None else pb.ImageInput(image_file=image_file)
    return pb.ClassifyRequest(image=image, labels=labels, **fields)


def refused(call) -> tuple[grpc.StatusCode, str, grpc.RpcError]:
    """(status code, ErrorInfo reason, error) of a call that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    status = rpc_status.from_call(caught.value)
    info = error_details_pb2.ErrorInfo()
    assert status is not None, f"no details: {caught.value.code()} {caught.value.details()}"
    assert status.details[0].Unpack(info)
    assert info.domain == "thinwire"
    return caught.value.code(), info.reason, caught.value


def jpeg(size=(300, 200), seed=3, **save) -> bytes:
    out = io.BytesIO()
    rng = np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 255, (*size[::-1], 3), dtype=np.uint8)).save(out, "JPEG", **save)
    return out.getvalue()
