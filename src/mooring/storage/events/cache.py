"""Recently written and recently read batches, so that readers of the same place share the work.

Everything just committed goes in, since most readers wait at the end of the log; what was read
back from disk goes in too. The least recently used batch leaves when the bound is passed.
"""

from bisect import bisect_left, bisect_right, insort
from collections import OrderedDict

from .batch import Batch, key


class BatchCache:
    """Batches by the sequence numbers that they hold, bounded by memory."""

    def __init__(self, partitions: int, limit_bytes: int) -> None:
        self._firsts: list[list[int]] = [[] for _ in range(partitions)]
        self._batches: OrderedDict[int, Batch] = OrderedDict()
        self._limit = limit_bytes
        self._weight = 0

    def put(self, batch: Batch) -> None:
        """Remember a batch that is on disk."""
        place = key(batch.partition, batch.first)
        if place in self._batches:
            return
        self._batches[place] = batch
        self._weight += batch.weight
        firsts = self._firsts[batch.partition]
        if firsts and batch.first < firsts[-1]:
            insort(firsts, batch.first)
        else:
            firsts.append(batch.first)
        while self._weight > self._limit and len(self._batches) > 1:
            _, old = self._batches.popitem(last=False)
            self._weight -= old.weight
            firsts = self._firsts[old.partition]
            del firsts[bisect_left(firsts, old.first)]

    def get(self, partition: int, sequence: int) -> Batch | None:
        """The batch that holds this event, if it is here."""
        firsts = self._firsts[partition]
        at = bisect_right(firsts, sequence) - 1
        if at < 0:
            return None
        place = key(partition, firsts[at])
        batch = self._batches[place]
        if batch.last < sequence:
            return None
        self._batches.move_to_end(place)
        return batch
