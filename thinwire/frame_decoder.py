"""AV1 frames unpacked and decoded in processes that may die: a stranger's bytes reach C code there, and nowhere else.

`decode_apart` hands a bare frame to a child process and takes its pixels back. A child is bounded in memory and time;
one that crashes, hangs or answers nonsense costs that one frame (`DamagedFrame`), and the next frame gets a new child.
Children wait for work and are used again; they end when this process does, however it ends, because their standard
input closes.

One request: form and lengths as `_REQUEST`, then a model of symbols where the child has not seen it, then the frame.
One answer: `_ANSWER`, then pixels or an error's text.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import struct
import subprocess
import sys
import time

import numpy as np

from thinwire import bare_av1
from thinwire.bare_av1 import BareForm
from thinwire.errors import DamagedFrame, ThinwireError
from thinwire.frame_packing import FramePacker

TIMEOUT_S = 5.0  # for one frame; the largest takes milliseconds
START_TIMEOUT_S = 60.0  # for a child's first word: a busy machine imports slowly
MEMORY_BYTES = 2 << 30  # address space of a child, libraries included

# width, height, chroma, filters, rung from 0 or _PLAIN, hash of the model, bytes of the model, bytes of the frame
_REQUEST = struct.Struct("<HHBBB16sII")
_PLAIN = 255
_ANSWER = struct.Struct("<BI")  # _PIXELS, _DAMAGED or _UNABLE; bytes that follow
_READY = b"ready\n"
_PIXELS, _DAMAGED, _UNABLE = range(3)
_CHROMA = ("4:2:0", "4:4:4", "4:0:0")


class _Died(Exception):
    """A child ended or went past its time; the text says which."""


def decode_apart(frame: bytes, form: BareForm, packer: FramePacker | None = None, rung: int = _PLAIN) -> np.ndarray:
    """A bare frame → uint8 (height, width, 3) RGB, decoded in a child process. May be called from several threads.

    packer, rung (from 0): of a frame that is packed; the child unpacks it. Raises `DamagedFrame` when the frame does
    not decode or takes its decoder down, `CoderMissing` for a packed one where there is no compiled coder,
    `ThinwireError` when no decoder can be started.
    """
    if packer is None:
        bare_av1.wrap(frame, form)  # what can be refused without a decoder is refused here
    else:
        packer.check_compiled()
    child = _take()
    try:
        kind, body = child.ask(frame, form, packer, rung)
    except _Died as error:
        child.end()
        raise DamagedFrame(f"the AV1 decoder {error}: the frame was refused") from None
    except BaseException:
        child.end()
        raise
    _idle.put(child)
    if kind == _PIXELS and len(body) == form.width * form.height * 3:
        return np.frombuffer(body, np.uint8).reshape(form.height, form.width, 3)
    raise (DamagedFrame if kind != _UNABLE else ThinwireError)(body.decode("utf-8", "replace"))


class _Child:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "thinwire.frame_decoder"],  # -P: never a module of the working folder
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        self._models: set[bytes] = set()  # hashes of those that the child has
        self._poll = select.poll()  # select() cannot take the high file numbers of a busy server
        self._poll.register(self._process.stdout.fileno(), select.POLLIN)
        try:
            self._read(len(_READY), START_TIMEOUT_S)
        except _Died as error:
            self.end()
            raise ThinwireError(f"the process that decodes AV1 frames {error}: is Pillow installed whole?") from None

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, frame: bytes, form: BareForm, packer: FramePacker | None, rung: int) -> tuple[int, bytes]:
        filters = form.cdef | form.restoration << 1
        digest = bytes(16) if packer is None else packer.digest
        model = b"" if packer is None or digest in self._models else packer.symbol_model
        sizes = len(model), len(frame)
        head = _REQUEST.pack(form.width, form.height, _CHROMA.index(form.chroma), filters, rung, digest, *sizes)
        self._models.add(digest)
        try:
            rest = memoryview(head + model + frame)
            while rest:  # an unbuffered pipe may take a part
                rest = rest[self._process.stdin.write(rest) :]
        except OSError as error:
            raise _Died(f"is gone ({error.strerror})") from None
        kind, size = _ANSWER.unpack(self._read(_ANSWER.size, TIMEOUT_S))
        if size > max(4096, 3 * form.width * form.height):
            raise _Died("answers nonsense")
        return kind, self._read(size, TIMEOUT_S)

    def _read(self, count: int, timeout_s: float) -> bytes:
        pipe, data, end = self._process.stdout.fileno(), bytearray(), time.monotonic() + timeout_s
        while len(data) < count:
            if not self._poll.poll(1000 * max(0.0, end - time.monotonic())):
                raise _Died(f"took more than {timeout_s:g} s")
            part = os.read(pipe, count - len(data))
            if not part:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(1)
                raise _Died(f"ended with exit code {self._process.returncode}")
            data += part
        return bytes(data)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


_idle: queue.LifoQueue[_Child] = queue.LifoQueue()  # as many as threads that ever decoded at once


def _take() -> _Child:
    while True:
        try:
            child = _idle.get_nowait()
        except queue.Empty:
            return _Child()
        if child.alive:
            return child
        child.end()


def close() -> None:
    """Ends the children that wait; later calls start new ones."""
    while True:
        try:
            _idle.get_nowait().end()
        except queue.Empty:
            return


def _after_fork() -> None:
    global _idle
    _idle = queue.LifoQueue()  # a forked process must not share its parent's pipes


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _serve() -> None:
    """The child: frames from standard input until it closes."""
    from PIL import AvifImagePlugin

    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a frame is small: more threads take longer
    with contextlib.suppress(ImportError, ValueError, OSError):  # no such limit elsewhere
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    sink.write(_READY)
    sink.flush()
    packers: dict[bytes, FramePacker] = {}
    while len(head := source.read(_REQUEST.size)) == _REQUEST.size:
        width, height, chroma, filters, rung, digest, model_size, size = _REQUEST.unpack(head)
        model, frame = source.read(model_size), source.read(size)
        if len(model) < model_size or len(frame) < size:
            return
        if model:
            packers[digest] = FramePacker(model)
        form = BareForm(width, height, _CHROMA[chroma], bool(filters & 1), bool(filters & 2))
        try:
            if rung != _PLAIN:
                frame = packers[digest].unpack(frame, form, rung)
            kind, body = _PIXELS, bare_av1.decode(frame, form).tobytes()
        except DamagedFrame as error:
            kind, body = _DAMAGED, str(error).encode()[:4096]
        except ThinwireError as error:
            kind, body = _UNABLE, str(error).encode()[:4096]
        sink.write(_ANSWER.pack(kind, len(body)) + body)
        sink.flush()


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):
        _serve()
