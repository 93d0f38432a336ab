"""`hf:NAME[:SPLIT]`: a data set of the Hugging Face hub, streamed once into a file of this machine's cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from export.photographs.errors import PhotographsError
from export.photographs.sources import Found, Source

PICTURES = "pictures.bin"
MOST_BYTES = 50 << 30  # of stored pictures of one data set


def from_hub(source: Source, folder: Path) -> Iterator[Found]:
    """Streams the data set's pictures, as they are stored, to `folder`/pictures.bin. Raises `PhotographsError`."""
    name, split = source.places
    try:
        import datasets
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise PhotographsError(f"--images {source.text}: needs `pip install 'thinwire[datasets]'`") from error
    for library in (datasets, huggingface_hub):  # their retries are not for people: what fails is said below
        library.utils.logging.set_verbosity_error()
    try:
        stream = datasets.load_dataset(name, split=split, streaming=True)
        if stream.features is None:  # the hub does not tell, the first row does
            stream = stream._resolve_features()
        columns = dict(stream.features or {})
        column = next((key for key, kind in columns.items() if _is_picture(kind, datasets)), None)
        if column is not None and isinstance(columns[column], datasets.Image):
            # As stored. Libraries before 3.4 have no `decode`; in 5.2 `cast_column` does not reach folders of the hub
            if hasattr(stream, "decode"):
                stream = stream.decode(False)
            else:
                stream = stream.cast_column(column, datasets.Image(decode=False))
        rows = iter(stream)
    except Exception as error:  # datasets, huggingface_hub, fsspec and urllib each raise their own kinds
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise PhotographsError(
            f"--images {source.text}: cannot be had from the hub ({cause}); check the name, the split and the network, "
            "or give a folder that holds the pictures"
        ) from error
    if column is None:
        raise PhotographsError(f"--images {source.text}: has no column of pictures; it has {', '.join(columns)}")
    if source.caption and source.caption not in columns:
        raise PhotographsError(f"--images {source.text}: has no column {source.caption!r}; it has {', '.join(columns)}")
    offset = 0
    try:
        with open(folder / PICTURES, "wb") as kept:
            for number, row in enumerate(rows):  # closed by the caller: GeneratorExit is no Exception
                data = _bytes_of(row[column])
                kept.write(data)
                kept.flush()
                captions = row.get(source.caption) if source.caption else None
                captions = captions if isinstance(captions, list) else [captions] if captions else []
                yield Found(str(number), str(folder / PICTURES), offset, len(data), tuple(map(str, captions)))
                offset += len(data)
                if offset > MOST_BYTES:
                    return
    except Exception as error:  # the disk is full, or the network went: as above
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise PhotographsError(f"--images {source.text}: broke off ({cause}); run the command again") from error


def _is_picture(kind: Any, datasets: Any) -> bool:
    """Whether a column holds pictures, also where nobody has said so: a stored file and its name."""
    return isinstance(kind, datasets.Image) or (isinstance(kind, dict) and set(kind) == {"bytes", "path"})


def _bytes_of(value: dict) -> bytes:
    if value.get("bytes"):
        return value["bytes"]
    if not (path := value.get("path")):
        return b""
    import fsspec  # paths of a hub's folder of pictures: hf://, zip://

    with fsspec.open(path) as file:
        return file.read()
