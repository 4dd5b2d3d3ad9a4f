"""`Backend`: runs the parts of a large job and hands back what each gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

Key = TypeVar("Key")
Progress: TypeAlias = Callable[[int], None] | None
Work: TypeAlias = Callable[[Sequence[Any], Progress], Any]
"""Makes the result of a shard, and says as it goes how much of it is done."""


class Backend(Protocol):
    """Runs shards: what of a job is done in one go, such as some dozens of questions."""

    @property
    def verifier_workers(self) -> int | None:
        """The `num_workers` of a verifier that a work holds."""

    def map_shards(
        self,
        work: Work,
        shards: Iterable[tuple[Key, Sequence[Any]]],
        *,
        get_name: Callable[[Any], str],
        on_progress: Progress = None,
    ) -> Iterator[tuple[Key, Any]]:
        """Do the same work with each shard.

        Args:
            work: gives equal results wherever and in whatever order shards are done.
            shards: each a list of items, with a key of the caller's; taken as there is room.
            get_name: the name of an item, for messages.
            on_progress: called in this thread with what the work counts.

        Yields:
            The key and the result of each shard, as they are finished.
        """


class LocalBackend:
    """Does one shard after the other in this process.

    Args:
        num_workers: of the verifier that a work holds.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self.verifier_workers = num_workers

    def map_shards(
        self,
        work: Work,
        shards: Iterable[tuple[Key, Sequence[Any]]],
        *,
        get_name: Callable[[Any], str],
        on_progress: Progress = None,
    ) -> Iterator[tuple[Key, Any]]:
        """See `Backend`; an error ends the whole at once, and is what the work raised."""
        for key, shard in shards:
            yield key, work(shard, on_progress)
