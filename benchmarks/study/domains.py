"""Accuracy against bytes on other domains: scenes, textures, and any labelled folder given by --domain.

Points are those of rate-accuracy (the report treats both alike), with fewer peers. A folder of one's own is any layout
of docs/benchmarks.md; a class folder's name is its label.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.data.sets import DataError, Dataset, find_datasets, load_dataset
from benchmarks.data.textures import texture_set

if TYPE_CHECKING:
    from benchmarks.study.study import Study

NAME = "domains"
SETS = ("eval-scenes",)
PEERS = ("av1", "jpeg")
IMAGES = {"quick": 60, "full": None}


def domain_sets(study: Study) -> list[Dataset]:
    """Sets of `SETS` that rate-accuracy does not run already, the textures, and those given. Raises `DataError`."""
    limit = study.limit or IMAGES.get(study.preset.name)
    if study.domains:  # those named replace the defaults
        return [load_dataset(path, limit, study.seed) for path in study.domains]
    found = find_datasets(study.data_dir)
    taken = {data.name for data in study.datasets(1)}
    sets = [load_dataset(found[name], limit, study.seed) for name in SETS if name in found and name not in taken]
    try:
        return [*sets, texture_set(limit, study.seed)]
    except DataError:  # scikit-image is not installed
        return sets
