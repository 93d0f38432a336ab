"""`thinwire-edge`: the device's command line. Imports wait until a command needs them, so that help comes at once."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from edge.commands import field_options as field_cli
from edge.commands.options import (
    add_codec_options,
    add_ladder_option,
    add_line_options,
    add_question_options,
    command,
    positive,
    share,
)
from edge.defaults import CANNOT_RUN, DEFAULT_IN_FLIGHT, INTERRUPTED, SOME_FAILED
from thinwire.platforms import missing_module
from thinwire.text import safe_streams, shown, without_secrets

HOMES = {
    "classify": ("edge.commands.classify", "run"),
    "encode": ("edge.commands.packet_files", "encode"),
    "decode": ("edge.commands.packet_files", "decode"),
    "inspect": ("edge.commands.packet_files", "inspect"),
    **field_cli.HOMES,
}

EXAMPLES = """\
examples:
  thinwire-edge classify photo.jpg --labels "cat,dog,bicycle"
  thinwire-edge classify holiday/ --labels-file labels.txt --rate low --json > answers.jsonl
  thinwire-edge run rtsp://cam/1 --labels "person,car,nobody" --fps 2 --out answers.jsonl     for months
  thinwire-edge doctor --server HOST:PORT          finds what is wrong, and how to fix it
  thinwire-edge encode photo.jpg -o photo.twp      writes what would be sent to a file
  thinwire-edge inspect photo.twp                  what is in it
  thinwire-edge decode photo.twp -o back.png       the picture that the cloud decodes (needs thinwire[cloud])

The answers come from a server: start one with `thinwire-cloud serve`.
`thinwire-edge COMMAND --help` shows more."""

CLASSIFY_EXAMPLES = """\
examples:
  thinwire-edge classify photo.jpg --labels "cat,dog,bicycle"
  thinwire-edge classify *.jpg --labels-file labels.txt --server 10.0.0.5:50051 --rate low
  thinwire-edge classify holiday/ --labels "beach,mountain,city at night" --top-k 1 --json | jq .predictions[0].label

Labels are any words that complete "a photo of a ...". Folders are searched below for image files.
An image that fails does not stop the others.

exit code: 0 every image has an answer, 1 some have none, 2 wrong use or no server found"""

ENCODE_EXAMPLES = """\
examples:
  thinwire-edge encode photo.jpg -o photo.twp
  thinwire-edge encode holiday/ -o packets/ --rate high

exit code: 0 every image was encoded, 1 some were not, 2 wrong use"""

DECODE_EXAMPLES = """\
examples:
  thinwire-edge decode photo.twp -o photo.png
  thinwire-edge decode packets/*.twp -o pictures/

Runs the decoder of the cloud, so it needs thinwire[cloud] installed beside the edge.

exit code: 0 every packet was decoded, 1 some were not, 2 wrong use or no decoder installed"""

INSPECT_EXAMPLES = """\
examples:
  thinwire-edge inspect photo.twp
  thinwire-edge inspect layered            a bundle that ships with thinwire
  thinwire-edge inspect ./my-bundle --json

exit code: 0 sound, 1 damaged or unknown, 2 wrong use"""


def _parser() -> argparse.ArgumentParser:
    from thinwire import __version__

    parser = argparse.ArgumentParser(
        prog="thinwire-edge",
        description="CLIP over a thin wire: the device. Turns images into packets of a few hundred bytes and asks a "
        "server what they show.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"thinwire-edge {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_classify(commands)
    field_cli.add_commands(commands)
    _add_encode(commands)
    _add_decode(commands)
    _add_inspect(commands)
    return parser


def _add_classify(commands) -> None:
    sub = command(
        commands,
        "classify",
        "ask a server which labels fit images",
        "Encodes each image, sends the packet, and shows which labels fit best.",
        CLASSIFY_EXAMPLES,
    )
    sub.add_argument("images", nargs="+", metavar="IMG|DIR", help="image files, and folders to search for them")
    add_question_options(sub)
    sub.add_argument(
        "--json", action="store_true", help="one JSON object a line for each image on stdout, nothing else"
    )
    add_codec_options(sub)
    line = add_line_options(sub)
    line.add_argument(
        "--in-flight",
        type=positive,
        default=DEFAULT_IN_FLIGHT,
        metavar="N",
        help=f"most images in flight ({DEFAULT_IN_FLIGHT})",
    )
    add_ladder_option(sub)
    sub.add_argument(
        "--confidence",
        type=share,
        default=0.0,
        metavar="C",
        help="with --ladder: send more only if the server is less sure of the answer than C (0: its default)",
    )


def _add_encode(commands) -> None:
    sub = command(
        commands,
        "encode",
        "write images as packet files",
        "Writes the packet of each image, exactly the bytes that `classify` would send.",
        ENCODE_EXAMPLES,
    )
    sub.add_argument("images", nargs="+", metavar="IMG|DIR", help="image files, and folders to search for them")
    sub.add_argument(
        "-o", "--output", required=True, metavar="OUT", help="OUT.twp for one image; else a folder, created if missing"
    )
    sub.add_argument("--json", action="store_true", help="one JSON object a line for each image on stdout")
    add_codec_options(sub)


def _add_decode(commands) -> None:
    sub = command(
        commands,
        "decode",
        "decode packet files to pictures (needs thinwire[cloud])",
        "Writes what the cloud sees: the picture that its decoder makes from each packet.",
        DECODE_EXAMPLES,
    )
    sub.add_argument("packets", nargs="+", metavar="PACKET", help="packet files")
    sub.add_argument("-o", "--output", required=True, metavar="OUT", help="OUT.png for one packet; else a folder")
    sub.add_argument(
        "--bundle", metavar="NAME|PATH", help="bundle that made the packets (default: the shipped one with their id)"
    )


def _add_inspect(commands) -> None:
    sub = command(
        commands,
        "inspect",
        "show what is in a packet or a bundle",
        "Prints the header and the layers of a packet file, or the card of a bundle, after checking them.",
        INSPECT_EXAMPLES,
    )
    sub.add_argument(
        "target", metavar="PACKET|BUNDLE", help="a packet file, a bundle's folder, or a shipped bundle's name"
    )
    sub.add_argument("--bundle", metavar="NAME|PATH", help="also look for the packet's model in this bundle")
    sub.add_argument("--json", action="store_true", help="one JSON object on stdout")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `thinwire-edge`; returns the exit code: 0 done, 1 some images or packets failed, 2 could not run."""
    safe_streams()
    args = _parser().parse_args(argv)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its log of every lost connection would only repeat our errors
    from thinwire.errors import ThinwireError

    try:
        home, name = HOMES[args.command]
        run = getattr(importlib.import_module(home), name)
        code = run(args)
        sys.stdout.flush()
        return code
    except ThinwireError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        return _fail(missing_module(error, f"thinwire-edge {args.command}", "edge"))
    except BrokenPipeError:  # `| head` has seen enough; Python must not complain again when it flushes at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return SOME_FAILED
    except OSError as error:  # of the standard output, or of a file that nobody expected to fail
        from thinwire.files import told

        return _fail(told(error))
    except KeyboardInterrupt:
        print("thinwire-edge: interrupted", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        # gRPC 1.82 sometimes aborts when Python tears down a channel with calls in flight ("epoll_wait error"), which
        # would hide the exit code. Nothing is left to save: `run` has its frames on disk.
        os._exit(INTERRUPTED)


def _fail(text: str) -> int:
    for line in without_secrets(text).splitlines():
        print(f"thinwire-edge: {shown(line)}", file=sys.stderr)
    return CANNOT_RUN


if __name__ == "__main__":
    sys.exit(main())
