"""`thinwire-edge doctor`: from the encoder to a test frame's answer, step by step, with the fix for what fails."""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import ssl
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge.commands.run import line_of
from edge.commands.terminal import BOLD, PLAIN, RED
from edge.encoder import Encoder, default_rate
from edge.errors import Refused
from edge.field.fallback import gives_vectors
from edge.line.client import Question, check_server, prepare
from edge.line.connection_help import trusted_authorities
from edge.line.ladder import Ladder, fuses, not_fused, open_ladder
from edge.line.uplink import Line, Uplink
from thinwire import __version__
from thinwire.bundle import Bundle, load_bundle
from thinwire.contract import TIME_KEY
from thinwire.errors import ThinwireError

CONNECT_TIMEOUT_S = 5.0
CLOCK_STEP_S = 30.0
LEAST_FREE_MB = 50
EXPIRES_SOON_DAYS = 14
OK, WARNING, FAILED, SKIPPED = "ok", "warning", "failed", "skipped"


@dataclass(frozen=True)
class Check:
    """One step's outcome. status: ok, warning, failed or skipped; fix: what to do, "" where nothing is."""

    name: str
    status: str
    detail: str
    fix: str = ""
    ms: float = 0.0


class Broken(Exception):
    """A step failed: (detail, fix)."""


class Doctor:
    """Runs the steps in order; a step whose ground is missing is skipped.

    bundle: name or folder. spool: file whose disk is checked too. precision, threads, provider: as for `Encoder`.
    rate: of the test frame; None or "auto" for the bundle's default. ladder: checked in place of `bundle`.
    """

    def __init__(
        self,
        line: Line,
        bundle: str,
        spool: str | None = None,
        precision: str = "auto",
        rate: str | None = None,
        threads: int = 1,
        provider: str = "cpu",
        ladder: str | None = None,
    ) -> None:
        self._ladder_text = ladder
        self._ladder: Ladder | None = None
        self._line, self._bundle_name, self._spool = line, bundle, spool
        self._precision, self._threads, self._provider = precision, threads, provider
        self._asked_rate = None if rate == "auto" else rate
        host, _, port = line.server.rpartition(":")
        self._host, self._port = ("", 0) if line.unix else (host.strip("[]"), int(port))
        self._bundle: Bundle | None = None
        self._encoder: Encoder | None = None
        self._info: Any = None
        self._server_time: float | None = None

    def run(self, tell: Callable[[Check], None]) -> list[Check]:
        """All checks; `tell` gets each as it is done."""
        steps: list[tuple[str, Callable[[], tuple[str, str, str]], tuple[str, ...]]] = [
            ("encoder", self._check_encoder, ()),
            ("disk", self._check_disk, ()),
            ("dns", self._check_dns, ()),
            ("tcp", self._check_tcp, ("dns",)),
            ("tls", self._check_tls, ("tcp",)),
            ("server", self._check_server, ("tcp", "tls")),
            ("version", self._check_version, ("server",)),
            ("bundle", self._check_bundle, ("server", "encoder")),
            ("clock", self._check_clock, ()),
            *([("ladder", self._check_ladder, ("bundle",))] if self._ladder_text else []),
            ("frame", self._check_frame, ("bundle",)),
        ]
        done: dict[str, Check] = {}
        with Uplink(self._line) as self._uplink:
            for name, step, needs in steps:
                missing = [need for need in needs if done[need].status in (FAILED, SKIPPED)]
                started = time.perf_counter()
                if missing:
                    status, detail, fix = SKIPPED, f"needs {missing[0]}", ""
                else:
                    try:
                        status, detail, fix = step()
                    except Broken as broken:
                        status, detail, fix = FAILED, *broken.args
                    except ThinwireError as error:  # "what is wrong: what to do"
                        detail, _, fix = str(error).rpartition(": ")
                        status, detail, fix = FAILED, detail or str(error), fix if detail else ""
                done[name] = Check(name, status, detail, fix, round(1000 * (time.perf_counter() - started), 1))
                tell(done[name])
        return list(done.values())

    def _rate(self, bundle: Bundle) -> str:
        return self._asked_rate or default_rate(bundle)

    def _check_encoder(self) -> tuple[str, str, str]:
        if self._ladder_text:
            self._ladder = open_ladder(self._ladder_text, self._threads, self._precision, self._provider)
            self._encoder, self._bundle = self._ladder.first.encoder, self._ladder.first.bundle
            self._asked_rate = self._ladder.first.rate
        else:
            self._bundle = load_bundle(self._bundle_name)
            self._encoder = Encoder(self._bundle, self._threads, self._precision, self._provider)
        encoded = self._encoder.encode(_test_view(self._bundle), self._rate(self._bundle))
        detail = (
            f"bundle {self._bundle.name} ({self._bundle.model_id.hex()}), {self._encoder.runs}: "
            f"{encoded.encode_ms + encoded.code_ms:.1f} ms a frame"
        )
        if self._bundle.coder.form == "readable":
            return (
                WARNING,
                f"{detail}, {encoded.code_ms:.1f} of them to code its packet in plain Python",
                "install thinwire's wheel for this system: its coder is compiled",
            )
        if self._bundle.coder.form == "unpacked":
            return (
                WARNING,
                f"{detail}; its stills are sent larger than need be, for want of the compiled coder that packs them",
                "install thinwire's wheel for this system: its coder is compiled",
            )
        return OK, detail, ""

    def _check_disk(self) -> tuple[str, str, str]:
        folder = Path(self._spool or ".").absolute().parent if self._spool else Path.cwd()
        while not folder.exists():
            folder = folder.parent
        free_mb = shutil.disk_usage(folder).free / 1e6
        try:
            probe = folder / f".thinwire-doctor-{time.time_ns()}"
            probe.write_bytes(b"x")
            probe.unlink()
        except OSError as error:
            raise Broken(
                f"{folder} is not writable ({error.strerror})",
                "mount it read-write, or name another place with --spool",
            ) from error
        if free_mb < LEAST_FREE_MB:
            return WARNING, f"{folder}: {free_mb:.0f} MB free", "free some space: the spool holds up to --spool-mb"
        return OK, f"{folder}: {free_mb:,.0f} MB free", ""

    def _check_dns(self) -> tuple[str, str, str]:
        if self._line.unix:
            return OK, "not needed for a socket in the file system", ""
        try:
            found = socket.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise Broken(
                f"{self._host} cannot be resolved ({error.strerror or error})",
                "check the name in --server, and the DNS server in /etc/resolv.conf",
            ) from error
        return OK, f"{self._host} is {', '.join(dict.fromkeys(each[4][0] for each in found))}", ""

    def _check_tcp(self) -> tuple[str, str, str]:
        if self._line.unix:
            return self._check_socket()
        started = time.perf_counter()
        try:
            with socket.create_connection((self._host, self._port), CONNECT_TIMEOUT_S):
                return OK, f"port {self._port} answers in {1000 * (time.perf_counter() - started):.1f} ms", ""
        except ConnectionRefusedError as error:
            raise Broken(
                f"no server listens on {self._line.server}",
                "start the server (`thinwire-cloud serve`), or correct --server",
            ) from error
        except OSError as error:
            raise Broken(
                f"{self._line.server} cannot be reached ({error.strerror or error})",
                "check the network, and that no firewall on the way blocks this port",
            ) from error

    def _check_socket(self) -> tuple[str, str, str]:
        path = self._line.server.removeprefix("unix:").removeprefix("//")
        try:
            with socket.socket(socket.AF_UNIX) as channel:
                channel.settimeout(CONNECT_TIMEOUT_S)
                channel.connect(path)
        except OSError as error:
            raise Broken(
                f"{path} does not answer ({error.strerror or error})",
                "start the server with `thinwire-cloud serve --host unix:PATH`, and check who may use the file",
            ) from error
        return OK, f"{path} answers", ""

    def _check_tls(self) -> tuple[str, str, str]:
        if not self._line.encrypted:
            return OK, "off" if self._line.local else "off: anyone on the way can read and alter what is sent", ""
        # The authorities that the client trusts, which are not this machine's
        own = None if self._line.root_certificate else trusted_authorities()
        context = ssl.create_default_context(cafile=self._line.root_certificate, cadata=own)
        context.set_alpn_protocols(["h2"])
        if self._line.client_certificate is not None:
            try:
                context.load_cert_chain(self._line.client_certificate, self._line.client_key)
            except (OSError, ssl.SSLError) as error:
                raise Broken(f"client certificate cannot be used: {error}", "check --tls-cert and --tls-key") from error
        try:
            with (
                socket.create_connection((self._host, self._port), CONNECT_TIMEOUT_S) as plain,
                context.wrap_socket(plain, server_hostname=self._host) as line,
            ):
                peer, version = line.getpeercert(), line.version()
        except ssl.SSLCertVerificationError as error:
            raise Broken(error.verify_message, _tls_fix(error.verify_message)) from error
        except (ssl.SSLError, OSError) as error:
            raise Broken(
                f"no TLS handshake ({getattr(error, 'reason', None) or error})",
                "check that the server serves TLS on this port, or omit --tls and --tls-ca",
            ) from error
        days = (ssl.cert_time_to_seconds(peer["notAfter"]) - time.time()) / 86400
        detail = f"{version}, certificate valid for {days:.0f} more days"
        if days < EXPIRES_SOON_DAYS:
            return WARNING, detail, "renew the server's certificate soon"
        return OK, detail, ""

    def _check_server(self) -> tuple[str, str, str]:
        self._info, metadata = self._uplink.info_and_metadata()
        try:
            self._server_time = float(metadata[TIME_KEY])
        except (KeyError, ValueError):
            self._server_time = None
        who = "with our token" if self._line.token else "without a token"
        return OK, f"thinwire {self._info.version or '?'} answers {who}, CLIP {self._info.clip.name}", ""

    def _check_version(self) -> tuple[str, str, str]:
        theirs, ours = self._info.version, __version__
        if theirs.split(".")[:2] == ours.split(".")[:2]:
            return OK, f"both are {ours}" if theirs == ours else f"we are {ours}, the server is {theirs}", ""
        return WARNING, f"we are {ours}, the server is {theirs or 'unknown'}", "bring both to the same release"

    def _check_bundle(self) -> tuple[str, str, str]:
        try:
            check_server(self._info, self._bundle, self._line.server)
        except Refused as error:
            detail, _, fix = str(error).partition(". ")
            raise Broken(detail, fix) from error
        return OK, f"the server decodes {self._bundle.name} ({self._bundle.model_id.hex()})", ""

    def _check_ladder(self) -> tuple[str, str, str]:
        first, said = self._ladder.first.bundle, []
        for step in self._ladder.others:
            try:
                check_server(self._info, step.bundle, self._line.server)
            except Refused as error:
                detail, _, fix = str(error).partition(". ")
                raise Broken(detail, fix) from error
            encoded = step.encoder.encode(_test_view(step.bundle), step.rate)
            cost_ms = encoded.encode_ms + encoded.code_ms
            said.append(f"{step.bundle.name} up to {step.rate}: {len(encoded.packet)} bytes, {cost_ms:.1f} ms")
        others = [step.bundle for step in self._ladder.others]
        fused = fuses(self._info, first, others)
        for bundle in others:
            if bundle not in fused:
                detail, _, fix = not_fused(first, bundle).partition(" (")
                return WARNING, detail, fix.rstrip(")")
        how = "and answers by itself while the link is down" if gives_vectors(first) else "with no answer of its own"
        return OK, f"{first.name} goes first, {how}; then, where the server asks: {'; '.join(said)}", ""

    def _check_clock(self) -> tuple[str, str, str]:
        fix = "set the clock (`timedatectl set-ntp true`): certificates and the age of frames depend on it"
        now = time.time()
        if self._server_time is not None:
            skew_s = now - self._server_time
            detail = f"{abs(skew_s):.1f} s {'ahead of' if skew_s > 0 else 'behind'} the server"
            return (OK, detail, "") if abs(skew_s) <= CLOCK_STEP_S else (FAILED, detail, fix)
        newest = max((path.stat().st_mtime for path in Path(__file__).parent.glob("*.py")), default=0.0)
        if now < newest - 86400:
            return FAILED, f"{time.strftime('%F %T')} is before this program was installed", fix
        return OK, f"{time.strftime('%F %T %Z')} is plausible (the server does not tell its time)", ""

    def _check_frame(self) -> tuple[str, str, str]:
        question = Question.check(["a test pattern", "something else"], 2, "1")
        prepared = prepare(self._encoder, _test_view(self._bundle), self._rate(self._bundle), question)
        started = time.perf_counter()
        reply = self._uplink.classify(prepared.request)
        round_trip_ms = 1000 * (time.perf_counter() - started)
        return (
            OK,
            (
                f"{prepared.sent_bytes} bytes, answered in {round_trip_ms:.0f} ms "
                f"({reply.timing.total_ms:.0f} ms of it in the server)"
            ),
            "",
        )


def _tls_fix(message: str) -> str:
    if "expired" in message or "not yet valid" in message:
        return "renew the server's certificate, or set this device's clock (`date` tells it)"
    if "ostname mismatch" in message or "IP address mismatch" in message:
        return "use the name that the certificate is for in --server"
    return "give the authority that signed the server's certificate with --tls-ca"


def _test_view(bundle: Bundle) -> np.ndarray:
    """A colour pattern: uint8 (H, W, 3)."""
    height, width = bundle.input_size
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([255 * y // height, 255 * x // width, (x // 16 + y // 16) % 2 * 255], axis=-1).astype(np.uint8)


def doctor(args: argparse.Namespace) -> int:
    """`thinwire-edge doctor`. Returns the exit code."""
    colour = sys.stdout.isatty()

    def tell(check: Check) -> None:
        if args.json:
            return
        mark = f"{check.status:8}"
        if colour:
            mark = f"{RED if check.status == FAILED else BOLD}{mark}{PLAIN}"
        print(f"{mark}{check.name:9}{check.detail}", flush=True)
        if check.fix:
            print(f"{'':17}-> {check.fix}", flush=True)

    how = args.precision, args.rate, args.threads, args.provider, args.ladder
    checks = Doctor(line_of(args), args.bundle, args.spool, *how).run(tell)
    healthy = all(check.status in (OK, WARNING) for check in checks)
    if args.json:
        print(json.dumps({"healthy": healthy, "checks": [vars(check) for check in checks]}))
    return 0 if healthy else 1
