"""`Closing`: closed at the end of a `with` block."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self


class Closing(ABC):
    """Something that holds files or processes until `close`, and may be used as a `with` block.

    What is open cannot be copied. It pickles as what it was made of, and a copy, in this process or
    in another one (`Dataset.map(num_proc=2)`), opens files and processes of its own.
    """

    _make: Callable[[], Self]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        self._make = functools.partial(cls, *args, **kwargs)
        return self

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        return self._make, ()

    @abstractmethod
    def close(self) -> None:
        """Free what is held; closing twice is allowed."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
