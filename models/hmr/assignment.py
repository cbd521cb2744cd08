"""The cheapest pairing of the rows and columns of a table: the Hungarian algorithm. numpy only."""

from __future__ import annotations

import numpy as np

from hmr.errors import DataError


def assign(costs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns (K,) of the pairing with the least sum, K = min(N, M), rows ascending.

    costs: (N, M) finite. Kuhn's algorithm with potentials and shortest augmenting paths, one row
    after the other, O(K² max(N, M)). DataError for a cost that is not finite.
    """
    costs = np.asarray(costs, np.float64)
    if not np.isfinite(costs).all():
        raise DataError(
            "costs hold NaN or infinity; give a large number to a pair that must not be"
        )
    if costs.shape[0] > costs.shape[1]:
        columns, rows = assign(costs.T)
        order = np.argsort(rows)
        return rows[order], columns[order]
    count, width = costs.shape
    of_row, of_column = np.zeros(count), np.zeros(width + 1)
    # Row of each column, -1 for none. The last column is a stand-in that holds the row to place.
    owner = np.full(width + 1, -1)
    for row in range(count):
        owner[width] = row
        _augment(costs, owner, of_row, of_column)
    columns = np.flatnonzero(owner[:width] >= 0)
    order = np.argsort(owner[columns])
    return owner[columns][order], columns[order]


def _augment(
    costs: np.ndarray, owner: np.ndarray, of_row: np.ndarray, of_column: np.ndarray
) -> None:
    """Give the row in the stand-in column a real one, by the shortest path that moves others."""
    width = costs.shape[1]
    slack = np.full(width, np.inf)
    before = np.full(width, width)
    reached = np.zeros(width + 1, bool)
    here = width
    while owner[here] >= 0:
        reached[here] = True
        row = owner[here]
        offer = costs[row] - of_row[row] - of_column[:width]
        better = ~reached[:width] & (offer < slack)
        slack[better], before[better] = offer[better], here
        open_slack = np.where(reached[:width], np.inf, slack)
        nearest = int(open_slack.argmin())
        step = open_slack[nearest]
        of_row[owner[reached]] += step
        of_column[reached] -= step
        slack[~reached[:width]] -= step
        here = nearest
    while here != width:
        owner[here] = owner[before[here]]
        here = before[here]
    owner[width] = -1
