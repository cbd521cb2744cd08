"""The crops of person shards as pictures: each shows one person, as the model was trained to see
them. A picture's name is the person's `sample_id`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hmr.errors import ImageError
from rayhmr.data.schema import MANIFEST, read_info
from rayhmr.pictures import Pictures, table_of
from rayhmr.storage import Folder


def is_shards(location: str) -> bool:
    """Whether `jobs/prepare.py` made this folder."""
    return Folder(location).exists(MANIFEST)


class ShardPictures(Pictures):
    """split: of which the people are; none: all. DataError for a folder that is no data set."""

    block_rows = 250
    """A row group, which is read as a whole."""

    def __init__(self, location: str, split: str | None = None) -> None:
        info = read_info(location)
        self.folder, self.fingerprint = Folder(info.location), info.fingerprint
        if self.folder.is_local:
            self.root = self.folder.root
        splits = [split] if split else [name for name, files in info.files.items() if files]
        self.names = [name for of in splits for name in info.names(of)]

    def listing(self) -> pa.Table:
        """File by file, in the order of the rows."""
        rows: list[dict[str, Any]] = []
        for file, name in enumerate(self.names):
            with self._opened(name) as shard:
                for group in range(shard.num_row_groups):
                    ids = shard.read_row_group(group, columns=["sample_id"])["sample_id"]
                    rows += [
                        {"path": sample_id, "place": [file, group, row], "sequence": name,
                         "frame": len(rows) + row, "stamp": self.fingerprint}
                        for row, sample_id in enumerate(ids.to_pylist())
                    ]  # fmt: skip
        return table_of(rows)

    def _opened(self, name: str) -> pq.ParquetFile:
        return pq.ParquetFile(self.folder.open(name))

    def contents(self, rows: Sequence[dict[str, Any]]) -> Iterator[bytes | ImageError]:
        """Row group by row group."""
        for (file, group), some in groupby(rows, key=lambda row: tuple(row["place"][:2])):
            with self._opened(self.names[file]) as shard:
                images = shard.read_row_group(group, columns=["image"])["image"].combine_chunks()
            for row in some:
                yield images.field("bytes")[row["place"][2]].as_py()
