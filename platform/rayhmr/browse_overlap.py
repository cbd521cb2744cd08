"""Who or what is in a data set twice: pictures that are the same to the eye, people in several
splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rayhmr.browse_people import People
from rayhmr.picture_hash import equal_groups


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """Groups of rows of `People`, each rising. across: the same picture in several splits. within:
    in one split, or where there are none. subjects: (source, subject) in several splits to its
    rows. unnamed: people without a subject."""

    across: Sequence[Sequence[int]]
    within: Sequence[Sequence[int]]
    subjects: dict[tuple[str, str], list[int]]
    unnamed: int


def overlaps(people: People) -> Overlaps:
    """What a data set holds twice. Several people of one picture are no finding."""
    first_of: dict[int, int] = {}
    for row, picture in enumerate(people.pictures.tolist()):
        if picture >= 0:
            first_of.setdefault(picture, row)
    groups = [[first_of[p] for p in group] for group in equal_groups(people.prints)]
    across: list[list[int]] = []
    within: list[list[int]] = []
    for group in groups:
        several = len(set(people.splits[group])) > 1
        (across if several else within).append(group)
    return Overlaps(
        across=across, within=within, subjects=_shared_subjects(people),
        unnamed=int((people.subjects == "").sum()),
    )  # fmt: skip


def _shared_subjects(people: People) -> dict[tuple[str, str], list[int]]:
    splits: dict[tuple[str, str], set[str]] = {}
    keys = list(zip(people.sources.tolist(), people.subjects.tolist(), strict=True))
    for key, split in zip(keys, people.splits.tolist(), strict=True):
        splits.setdefault(key, set()).add(split)
    shared = {key for key, of in splits.items() if key[1] and len(of) > 1}
    rows: dict[tuple[str, str], list[int]] = {key: [] for key in sorted(shared)}
    for row, key in enumerate(keys):
        if key in shared:
            rows[key].append(row)
    return rows


def one_of_each_split(people: People, rows: Sequence[int]) -> list[int]:
    """The first row of every split."""
    _, first = np.unique(people.splits[list(rows)].astype(str), return_index=True)
    return sorted(rows[i] for i in first)
