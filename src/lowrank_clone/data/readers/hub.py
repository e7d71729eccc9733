"""Datasets of the Hugging Face Hub, streamed: what is not read is not downloaded."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import InputError
from ..config import SourceConfig
from .columns import Columns, absent
from .documents import HubPiece, Part, Place, RowError
from .opening import error_reason

if TYPE_CHECKING:
    from datasets import IterableDataset

_PARTS = 1024  # most parts of a dataset


@dataclass(frozen=True)
class HubInfo:
    """What the Hub says of a dataset."""

    revision: str | None
    """The commit that the source means now; None where the Hub is switched off (HF_HUB_OFFLINE)."""
    licence: str | None


def hub_info(source: SourceConfig) -> HubInfo:
    """The commit and the licence of a source's dataset.

    Raises:
        InputError: There is no such dataset or revision, or the network fails.
    """
    from huggingface_hub import HfApi, constants

    if constants.HF_HUB_OFFLINE:
        return HubInfo(source.revision, None)
    try:
        found = HfApi().dataset_info(source.path, revision=source.revision)
    except Exception as error:  # whatever the remote side fails with, the source is what the user must mend
        raise _failed(source, error) from error
    licence = found.card_data.get("license") if found.card_data else None
    return HubInfo(found.sha, ", ".join(licence) if isinstance(licence, list) else licence)


def split_hub(source: SourceConfig, one: bool) -> list[Part]:
    """The parts of a Hub dataset: its files, in at most 1,024 parts; with `one` a single part.

    Raises:
        InputError: It can't be loaded.
    """
    revision = hub_info(source).revision
    count = max(1, load_stream(source, revision).num_shards)
    parts = 1 if one else min(count, _PARTS)
    borders = [count * i // parts for i in range(parts + 1)]
    return [
        Part((HubPiece(source.path, start, stop, count, revision),), 0) for start, stop in itertools.pairwise(borders)
    ]


def load_stream(source: SourceConfig, revision: str | None) -> "IterableDataset":
    """The dataset, of which nothing is read yet.

    Raises:
        InputError: It can't be loaded.
    """
    from datasets import load_dataset

    try:
        return load_dataset(source.path, source.name, split=source.split, revision=revision, streaming=True)
    except Exception as error:
        raise _failed(source, error) from error


def _failed(source: SourceConfig, error: Exception) -> InputError:
    at = f", revision={source.revision}" if source.revision else ""
    return InputError(
        f"path: `{source.path}` is neither an existing file or folder nor a Hub dataset that loads with "
        f"name={source.name}, split={source.split}{at} ({error_reason(error)}); check the spelling and the network"
    )


def read_hub(piece: HubPiece, source: SourceConfig, columns: Columns) -> Iterator[tuple[Place, Any]]:
    """The values of the rows of some of a dataset's files.

    Raises:
        InputError: It can't be loaded, or reading it breaks off.
        RowError: A column is not there.
    """
    stream = load_stream(source, piece.revision)
    if stream.num_shards != piece.count:
        raise InputError(
            f"path: `{piece.path}` has {stream.num_shards:,} files now, and had {piece.count:,} when its reading "
            "began; give a revision, so that all of it is read of the same one"
        )
    if stream.column_names is not None:
        stream = stream.select_columns(_top(columns, stream.column_names))  # others are not even decoded
    for index in range(piece.start, piece.stop):
        where = piece.path if piece.count == 1 else f"{piece.path} file {index + 1} of {piece.count}"
        rows = iter(stream.shard(num_shards=piece.count, index=index))
        number = 0
        while True:
            try:
                row = next(rows, None)
            except Exception as error:
                raise InputError(
                    f"path: {where}: reading breaks off at row {number:,} ({error_reason(error)}); check the network "
                    "and begin again"
                ) from error
            if row is None:
                break
            yield Place(where, "row", number), _taken(row, columns)
            number += 1


def _taken(row: dict[str, Any], columns: Columns) -> Any:
    try:
        return columns.take(row)
    except RowError as error:
        return error


def _top(columns: Columns, names: list[str]) -> list[str]:
    """The columns of a table that the source's dotted names begin with."""
    chosen: dict[str, None] = {}
    for name, field in columns.all():
        top = name if name in names else name.split(".")[0]
        if top not in names:
            raise absent(name, field, names)
        chosen[top] = None
    return list(chosen)
