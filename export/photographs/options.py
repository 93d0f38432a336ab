"""The flags of every command that takes photographs, and what they open."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from export.photographs.sources import CACHE_GB, EXAMPLE

if TYPE_CHECKING:
    from export.photographs.collection import Photographs


@dataclass(frozen=True)
class PhotographOptions:
    """As `open_photographs` takes them."""

    images: tuple[str, ...] = ()
    cache_gb: float = CACHE_GB
    captions: str | None = None

    def open(self, side: int | None = None) -> Photographs:
        from export.photographs.collection import open_photographs  # torch is no matter of the command line

        return open_photographs(self.images, side=side, cache_gb=self.cache_gb, caption=self.captions)


OURS = PhotographOptions()
"""../shared/data/photos-train.tar"""


def add_photograph_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("photographs")
    group.add_argument(
        "--images",
        nargs="+",
        action="extend",
        default=[],
        metavar="SOURCE[=WEIGHT]",
        help=f"{EXAMPLE.partition(', for')[0]}; several are mixed, by size or by WEIGHT, a share of the draws "
        "(default: ../shared/data/photos-train.tar where it is)",
    )
    group.add_argument(
        "--cache-gb",
        type=_gigabytes,
        default=CACHE_GB,
        metavar="GB",
        help="disk for decoded views (default %(default)g)",
    )
    group.add_argument(
        "--captions",
        metavar="COLUMN",
        help="column of labels.csv, field of a shard's .json or column of hf: (optional)",
    )


def _gigabytes(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0")
    return value


def photograph_options(args: argparse.Namespace) -> PhotographOptions:
    return PhotographOptions(tuple(args.images), args.cache_gb, args.captions)
