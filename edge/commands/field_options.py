"""The options of the commands for a device in the field: run, status, doctor, bench, bundle."""

from __future__ import annotations

from edge.commands.options import (
    add_codec_options,
    add_ladder_option,
    add_line_options,
    add_question_options,
    command,
    positive,
    seconds,
    share,
)

DEFAULT_SPOOL = "thinwire-spool.db"
DEFAULT_STORE = "thinwire-bundles"

HOMES = {
    "run": ("edge.commands.run", "run"),
    "status": ("edge.commands.status", "status"),
    "doctor": ("edge.commands.doctor", "doctor"),
    "bench": ("edge.commands.bench", "bench"),
    "bundle": ("edge.commands.bundle_store", "bundle"),
}

RUN_EXAMPLES = """\
examples:
  thinwire-edge run photos/ --watch --labels "cat,dog" --out answers.jsonl --server 10.0.0.5:50051
  thinwire-edge run rtsp://camera/stream --labels-file labels.txt --fps 2 --min-change 0.02 --rate auto --out a.csv
  thinwire-edge run photos/ --labels "cat,dog" --ladder bundles/student,still --confidence 0.9
  find /data -name '*.jpg' | thinwire-edge run - --labels "cat,dog" --max-kbps 20 --mb-per-day 50

A frame counts as accepted once it is on disk (--spool), and gets exactly one result, even across crashes of device or
server. After a crash run the same command again: nothing is lost or repeated. Ctrl-C or SIGTERM stop it cleanly.

exit code: 0 every frame has an answer, 1 some have none yet, 2 wrong use or a disk that cannot be used"""

STATUS_EXAMPLES = """\
examples:
  thinwire-edge status --spool /var/lib/thinwire/spool.db
  thinwire-edge status --json | jq .waiting_frames

exit code: 0 shown, 2 no spool found"""


DOCTOR_EXAMPLES = """\
examples:
  thinwire-edge doctor --server 10.0.0.5:50051
  thinwire-edge doctor --server vision.example.org:443 --tls --token-file token --spool /var/lib/thinwire/spool.db

exit code: 0 healthy, 1 something failed (its line says how to fix it), 2 wrong use"""

BENCH_EXAMPLES = """\
examples:
  thinwire-edge bench photos/ --precision int8
  nice -n 5 thinwire-edge bench --threads 2 | jq .cpu_s_per_frame

exit code: 0 measured, 1 some images failed, 2 wrong use"""

BUNDLE_EXAMPLES = """\
examples:
  thinwire-edge bundle install layered-2.tar.gz --card-sha256 5f2c...      check, install, make current
  thinwire-edge bundle rollback layered                                 back to the one before
  thinwire-edge run ... --bundle /var/lib/thinwire/bundles/layered/current

exit code: 0 done, 2 refused: the bundle in use stays in use"""


def add_commands(commands) -> None:
    """Adds them to `thinwire-edge`."""
    _add_run(commands)
    _add_status(commands)
    _add_doctor(commands)
    _add_bench(commands)
    _add_bundle(commands)


def _add_run(commands) -> None:
    sub = command(
        commands,
        "run",
        "classify folders, cameras and streams, for months",
        "Encodes frames as they come, keeps each on disk until it is answered, and writes each result once.",
        RUN_EXAMPLES,
    )
    sub.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="image files, folders, videos, /dev/video0, rtsp://..., - (stdin)"
    )
    add_question_options(sub)
    what = sub.add_argument_group("which frames")
    what.add_argument(
        "--watch", action="store_true", help="keep running, and take images that are added to the folders"
    )
    what.add_argument("--fps", type=seconds, metavar="F", help="frames a second to take from videos and cameras (all)")
    what.add_argument(
        "--min-change",
        type=share,
        default=0.0,
        metavar="S",
        help="skip frames that differ from the last one by less than this, 0 to 1 (0: skip none)",
    )
    what.add_argument("--crop", metavar="X,Y,W,H", help="use only this part: in pixels, or in fractions of the frame")
    out = sub.add_argument_group("results")
    out.add_argument("--out", action="append", metavar="FILE", help="a .jsonl or .csv file, - for stdout; repeatable")
    out.add_argument("--webhook", action="append", metavar="URL", help="POST each result as JSON; repeatable")
    out.add_argument("--mqtt", action="append", metavar="URL", help="publish to mqtt://HOST:PORT/TOPIC; repeatable")
    out.add_argument("--summary", action="store_true", help="end with one JSON line of counts on stdout")
    spool = sub.add_argument_group("the spool")
    spool.add_argument("--spool", default=DEFAULT_SPOOL, metavar="FILE", help=f"SQLite file ({DEFAULT_SPOOL})")
    spool.add_argument("--spool-mb", type=seconds, default=256.0, metavar="MB", help="largest size of the spool (256)")
    spool.add_argument(
        "--max-age-h", type=seconds, default=168.0, metavar="H", help="give a frame up after this many hours (168)"
    )
    spool.add_argument(
        "--when-full",
        choices=["refuse", "drop-oldest"],
        default="refuse",
        help="when full: refuse new frames, or drop the oldest (refuse)",
    )
    line = add_line_options(sub)
    line.set_defaults(timeout=30.0)
    line.add_argument("--in-flight", type=positive, default=16, metavar="N", help="most frames in flight (16)")
    line.add_argument("--max-kbps", type=seconds, metavar="K", help="most kbit/s to send")
    line.add_argument("--mb-per-day", type=seconds, metavar="MB", help="most MB (10^6 bytes) to send in a UTC day")
    line.add_argument(
        "--deadline",
        type=seconds,
        default=2.0,
        metavar="S",
        help="seconds within which --rate auto aims for an answer (2)",
    )
    line.add_argument(
        "--confidence",
        type=share,
        metavar="C",
        help="send one layer first (of a ladder its first step), more only if the server is less sure of the answer "
        "than C (0: its default)",
    )
    line.add_argument(
        "--drain",
        type=seconds,
        default=1e9,
        metavar="S",
        help="wait this many seconds for answers after the sources have ended",
    )
    add_codec_options(sub)
    add_ladder_option(sub)
    sub.add_argument("--nice", type=positive, metavar="N", help="lower the priority by N (as nice -n N)")
    sub.add_argument(
        "--fallback", metavar="BUNDLE", help="embedding bundle: answer on the device while the link is down"
    )


def _add_status(commands) -> None:
    sub = command(
        commands,
        "status",
        "show what a spool holds and the state of the link",
        "Reads the spool of a run.",
        STATUS_EXAMPLES,
    )
    sub.add_argument("--spool", default=DEFAULT_SPOOL, metavar="FILE", help=f"SQLite file ({DEFAULT_SPOOL})")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_doctor(commands) -> None:
    sub = command(
        commands,
        "doctor",
        "find out what is wrong between this device and the server",
        "Checks encoder, disk, DNS, TCP, TLS, token, versions, bundle, clock, and sends a test frame.",
        DOCTOR_EXAMPLES,
    )
    add_line_options(sub)
    add_codec_options(sub)
    add_ladder_option(sub)
    sub.add_argument("--spool", metavar="FILE", help="also check the disk that holds this spool")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")


def _add_bench(commands) -> None:
    sub = command(
        commands,
        "bench",
        "measure what a frame costs on this device",
        "Encodes frames without sending them. The last line on stdout is one JSON object.",
        BENCH_EXAMPLES,
    )
    sub.add_argument("images", nargs="*", metavar="IMG|DIR", help="images to encode (default: synthetic patterns)")
    sub.add_argument("--frames", type=positive, default=100, metavar="N", help="frames to encode (100)")
    add_codec_options(sub)


def _add_bundle(commands) -> None:
    sub = command(
        commands,
        "bundle",
        "install a new bundle, or go back to the one before",
        "Keeps bundles in a store; a link named current points to the one in use.",
        BUNDLE_EXAMPLES,
    )
    sub.add_argument("action", choices=["install", "rollback", "list"])
    sub.add_argument("what", nargs="?", default="", metavar="SOURCE|NAME", help="folder, tar or https address; or name")
    sub.add_argument("--store", default=DEFAULT_STORE, metavar="DIR", help=f"where bundles are kept ({DEFAULT_STORE})")
    sub.add_argument("--card-sha256", metavar="HEX", help="SHA-256 that its card.json must have")
    sub.add_argument(
        "--public-key",
        metavar="PEM",
        help="Ed25519 public key that must have signed it (in addition to the store's trusted.pem, if present)",
    )
