"""One definition of the arguments that a model with a head hands to the model below it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["takes_arguments_of"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


def takes_arguments_of(inner: Callable[..., Any], but: tuple[str, ...] = ()) -> Callable[[_Function], _Function]:
    """Decorator of a ``forward`` that passes its ``**kwargs`` on: its signature names the other's arguments as well.

    ``generate``, the Trainer, ``torch.export`` and ``help`` read a model's arguments off its signature.

    Args:
        inner: The ``forward`` that gets them.
        but: Names of arguments that the outer one makes itself.
    """

    def decorate(forward: _Function) -> _Function:
        own = inspect.signature(forward)
        named = {name: value for name, value in own.parameters.items() if value.kind is not value.VAR_KEYWORD}
        rest = [value for value in own.parameters.values() if value.kind is value.VAR_KEYWORD]
        passed_on = [
            value.replace(kind=value.KEYWORD_ONLY)
            for name, value in inspect.signature(inner).parameters.items()
            if name not in {*named, *but} and value.kind is not value.VAR_KEYWORD
        ]
        forward.__signature__ = own.replace(parameters=[*named.values(), *passed_on, *rest])
        return forward

    return decorate
