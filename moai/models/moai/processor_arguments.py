"""Keyword arguments of `MoAIProcessor`: transformers' protocol; unknown ones are refused.

Settings may stand alone (`padding=True`, `do_rescale=False`), in a dictionary of their kind (`text_kwargs`,
`images_kwargs`) or, what both kinds know, in `common_kwargs`; transformers sorts them. What no one would read is
refused: a misspelt name must not be lost silently.
"""

# No postponed annotations here: transformers reads them.
from collections.abc import Iterable, Mapping
from typing import Any, TypedDict

from transformers.processing_utils import ImagesKwargs, ProcessingKwargs


class MoAITextKwargs(TypedDict, total=False):
    """Settings of the text side.

    Attributes:
        padding: True / "longest", "max_length", or False; default is the tokenizer's own, else True.
        padding_side: "left" (needed for generation) or "right".
        pad_to_multiple_of: Round the padded length up.
        truncation: Whether a question that does not fit `max_length` loses its end, with a warning. Otherwise a
            `ValueError` names both lengths. Prompts given as `text` are never cut.
        max_length: Bound in tokens for this call; default is the processor's own, or what the tokenizer was built with
            where it is to pad or cut to that.
        add_special_tokens: Whether BOS is put in front of prompts that do not begin with it.
        return_offsets_mapping: Also return `offset_mapping`, where each token stands in its prompt; needs a fast
            tokenizer.
        return_tensors: "pt", "np", or None for lists.
        return_attention_mask: Always returned.
        return_token_type_ids: Never returned: the decoders have none.
        sanitize_control_tokens: Always so: `apply_chat_template` marks them.
        verbose: Without effect.
    """

    padding: bool | str | None
    padding_side: str | None
    pad_to_multiple_of: int | None
    truncation: bool | None
    max_length: int | None
    add_special_tokens: bool | None
    return_offsets_mapping: bool | None
    return_tensors: str | None
    return_attention_mask: bool | None
    return_token_type_ids: bool | None
    sanitize_control_tokens: bool | None
    verbose: bool | None


class MoAIProcessorKwargs(ProcessingKwargs, total=False):
    """Settings of a call; `return_mm_token_type_ids` is always on."""

    text_kwargs: MoAITextKwargs


#: Stand beside the settings of text and images.
_PROCESSOR_NAMES = frozenset({"return_mm_token_type_ids", "return_text_replacement_offsets"})


def refuse_unknown(kwargs: Mapping[str, Any], image_processor: Any) -> None:
    """Refuse an argument that neither text nor image processing would read.

    Args:
        kwargs: The caller's; None counts as not given.
        image_processor: Names its own settings in `valid_kwargs`.

    Raises:
        TypeError: Names the unknown arguments.
    """
    own = getattr(getattr(image_processor, "valid_kwargs", None), "__annotations__", {})
    text, images = set(MoAITextKwargs.__annotations__), {*ImagesKwargs.__annotations__, *own}
    known = {
        "text_kwargs": text | _PROCESSOR_NAMES,
        "images_kwargs": images,
        "common_kwargs": text & images,  # transformers gives them to both
        "videos_kwargs": frozenset(),
        "audio_kwargs": frozenset(),
    }
    unknown = _given(kwargs, text | images | _PROCESSOR_NAMES | known.keys())
    for name in known.keys() & kwargs.keys():
        unknown += [f"{name}[{key!r}]" for key in _given(kwargs[name] or {}, known[name])]
    if unknown:
        raise TypeError(f"MoAIProcessor got unknown arguments {unknown}. See help(MoAIProcessor.__call__).")


def tokenizer_defaults(tokenizer: Any, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer was built with and a call leaves open, as transformers' processors honour it.

    Its `padding_side` is left out: prompts to be answered are padded on the left. Its `max_length` counts as it does
    for the tokenizer itself: as the length to pad or cut to, not as a bound on everything.

    Args:
        tokenizer: Any Hugging Face tokenizer.
        kwargs: The caller's settings.

    Returns:
        The settings, for `ProcessorMixin._merge_kwargs`.
    """
    known = ("padding", "pad_to_multiple_of", "truncation", "max_length")
    defaults = {name: tokenizer.init_kwargs[name] for name in known if tokenizer.init_kwargs.get(name) is not None}
    asked = {**defaults, **(kwargs.get("common_kwargs") or {}), **(kwargs.get("text_kwargs") or {}), **kwargs}
    if asked.get("padding") != "max_length" and not asked.get("truncation"):
        defaults.pop("max_length", None)
    return defaults


def _given(kwargs: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    return [name for name, value in kwargs.items() if value is not None and name not in known]


__all__ = ["MoAIProcessorKwargs", "MoAITextKwargs", "refuse_unknown", "tokenizer_defaults"]
