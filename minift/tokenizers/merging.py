"""Byte-pair merges: of all neighbours that can be merged, those learned first, the leftmost first.

    l o w e r   ranks: (l, o) 0, (lo, w) 1, (e, r) 2   ->   lo w e r -> low e r -> low er

Sennrich et al. 2016, arXiv:1508.07909. What the symbols are, bytes or characters, makes no
difference: they are ids here.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from itertools import pairwise


def merge(ids: list[int], ranks: Mapping[tuple[int, int], int], merged: Sequence[int]) -> list[int]:
    """The ids of one word, merged; `ranks` are those of pairs, `merged` is what each rank makes.

    A heap, and links between neighbours: n log n for a word of n symbols. `ids` is used up.
    """
    n = len(ids)
    heap = [(ranks[pair], i) for i, pair in enumerate(pairwise(ids)) if pair in ranks]
    heapq.heapify(heap)
    right = list(range(1, n + 1))
    left = list(range(-1, n))
    ids.append(-1)  # merged away, or beyond an end (position n, which is also -1): in no pair
    while heap:
        rank, i = heapq.heappop(heap)
        j = right[i]
        if ids[i] < 0 or ranks.get((ids[i], ids[j])) != rank:
            continue  # one of the two has been merged since
        ids[i], ids[j] = merged[rank], -1
        k = right[i] = right[j]
        left[k] = i
        for a, b in ((left[i], i), (i, k)):
            if (new := ranks.get((ids[a], ids[b]))) is not None:
                heapq.heappush(heap, (new, a))
    return [i for i in ids if i >= 0]
