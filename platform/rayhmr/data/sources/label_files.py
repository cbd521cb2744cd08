"""Which files a setting `labels` stands for."""

from __future__ import annotations

import pyarrow.fs as pafs

from hmr.errors import DataError
from rayhmr.storage import Folder, explained, split


def label_files(labels: str, ending: str) -> tuple[Folder, list[str]]:
    """The folder and the names of the label files in it: those of a folder with this ending,
    sorted, or the one file that is given. DataError when there are none."""
    folder = Folder(labels)
    with explained(folder.location):
        kind = folder.files.get_file_info(folder.root).type
    if kind == pafs.FileType.File:
        parent, name = split(folder.location)
        return Folder(parent), [name]
    names = [name for name in folder.names() if name.endswith(ending) and name[0] != "."]
    if not names:
        what = f"has no {ending} file" if kind == pafs.FileType.Directory else "is not there"
        raise DataError(f"{labels}: {what}; give a label file ({ending}) or a folder of them")
    return folder, names
