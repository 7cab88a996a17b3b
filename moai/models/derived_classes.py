"""Subclasses made at run time for instances of other libraries' modules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def derive_class(original: type, maker: Callable[[type], type], **fields: Any) -> type:
    """Subclass a class at run time, under its own name.

    pickle looks a class up by its name, where one made at run time is not: instances say instead who makes their
    class, so that a model can be handed to a worker process (``torch.multiprocessing``).

    Args:
        original: What to subclass. Keeps its name, which sharding rules match.
        maker: Module-level function that makes the subclass of an original, this one of ``original``.
        **fields: Methods and attributes of the subclass.

    Returns:
        The subclass.
    """

    def __reduce_ex__(self: Any, protocol: int) -> tuple:
        return _new_instance, (maker, original), self.__getstate__()

    return type(original.__name__, (original,), fields | {"__reduce_ex__": __reduce_ex__})


def _new_instance(maker: Callable[[type], type], original: type) -> Any:
    derived = maker(original)
    return derived.__new__(derived)


__all__ = ["derive_class"]
