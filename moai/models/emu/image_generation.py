"""Images out: an image's embeddings one after the other, and texts with images in between."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..cache_names import as_keyword, read_cache

__all__ = ["GeneratedParts", "generate_parts", "regress_image"]


@torch.inference_mode()
def regress_image(
    model: Any,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None = None,
    *,
    pixel_values: torch.Tensor | None = None,
    image_embeds: torch.Tensor | None = None,
    use_cache: bool = True,
) -> torch.Tensor:
    """Predict the image that follows each prompt.

    What stands at ``[IMG]`` predicts the first embedding; every further step reads the one that was predicted before.

    Args:
        model: An :class:`.EmuForConditionalGeneration`.
        input_ids: ``(B, L)`` prompts, padded on the left, each ending with ``[IMG]``.
        attention_mask: ``(B, L)``.
        pixel_values: ``(B, T, 3, H, W)`` images in the prompts.
        image_embeds: ``(B, T, num_image_tokens, D)`` instead.
        use_cache: False reads the whole sequence anew at every step, as the released code does.

    Returns:
        ``(B, num_image_tokens, D)``.

    Raises:
        ValueError: A row does not end with ``[IMG]``, or images and their tokens do not match.
    """
    config = model.config
    mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if not (input_ids[:, -1] == config.image_start_token_id).all() or not mask[:, -1].all():
        raise ValueError(
            f"expected prompts that end with [IMG] (id {config.image_start_token_id}), padded on the left, got others. "
            "Use `processor.encode_drawing`."
        )
    prompt = model.model.embed(input_ids, pixel_values, image_embeds)
    one = mask.new_ones(len(mask), 1)
    cache, step, found = None, prompt, prompt[:, :0]
    for _ in range(config.num_image_tokens):
        outputs = model.model(inputs_embeds=step, attention_mask=mask, use_cache=use_cache, **as_keyword(cache))
        states = outputs.last_hidden_state
        if use_cache:
            cache, step = read_cache(outputs), model.regression_head(states[:, -1:])
            found = torch.cat([found, step], dim=1)
        else:
            found = model.regression_head(states[:, prompt.shape[1] - 1 :])
            step = torch.cat([prompt, found], dim=1)
        mask = torch.cat([mask, one], dim=1)
    return found


@dataclass(frozen=True, eq=False)
class GeneratedParts:
    """A text with images in between.

    Attributes:
        parts: Token ids ``(N,)`` of a text, or embeddings ``(num_image_tokens, D)`` of an image, in reading order.
        input_ids: ``(1, L)`` prompt and answer, images as their tokens.
        image_embeds: ``(1, T, num_image_tokens, D)`` of all images in ``input_ids``; None = there are none.
    """

    parts: tuple[torch.Tensor, ...]
    input_ids: torch.Tensor
    image_embeds: torch.Tensor | None


@torch.inference_mode()
def generate_parts(
    model: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    max_new_tokens: int,
    max_new_images: int = 4,
    **generate_kwargs: Any,
) -> GeneratedParts:
    """Go on with one prompt in text and images: wherever the model says ``[IMG]``, it draws.

    Args:
        model: An :class:`.EmuForConditionalGeneration`.
        inputs: ``input_ids`` ``(1, L)`` without padding, ``pixel_values`` or ``image_embeds``.
        max_new_tokens: Longest answer in tokens; an image's do not count.
        max_new_images: When so many are drawn, the rest is text.
        **generate_kwargs: To ``generate``.

    Raises:
        ValueError: There are several prompts.
    """
    config, ids, embeds = model.config, inputs["input_ids"], inputs.get("image_embeds")
    if len(ids) != 1:
        raise ValueError(f"expected one prompt, got {len(ids)}. Answers with images are made one by one.")
    counts = model.model.count_images(ids)
    if embeds is None and inputs.get("pixel_values") is not None:
        embeds = model.model.embed_images(inputs["pixel_values"], counts)
    if embeds is not None:
        embeds = embeds[:, : int(counts)]  # what is drawn follows the prompt's images, not their padding
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or ())
    start, end, image = config.image_start_token_id, config.image_end_token_id, config.image_token_id
    span = ids.new_tensor([[start, *[image] * config.num_image_tokens, end]])
    parts: list[torch.Tensor] = []
    num_images = 0
    while max_new_tokens > 0:
        may_draw = num_images < max_new_images
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            image_embeds=embeds,
            max_new_tokens=max_new_tokens,
            **{"do_sample": False} | generate_kwargs,
            eos_token_id=[*ends, start] if may_draw else ends,
            suppress_tokens=[image, end] if may_draw else [image, end, start],
            return_dict_in_generate=False,
        )
        new = out[0, ids.shape[1] :]
        is_drawing = len(new) > 0 and new[-1] == start
        text = new[:-1] if is_drawing else new
        max_new_tokens -= len(new)
        ids = torch.cat([ids, text[None]], dim=1)
        if len(text):
            parts.append(text)
        if not is_drawing:
            break
        drawn = regress_image(model, torch.cat([ids, span[:, :1]], dim=1), image_embeds=embeds)
        parts.append(drawn[0])
        ids = torch.cat([ids, span], dim=1)
        embeds = drawn[:, None] if embeds is None else torch.cat([embeds, drawn[:, None]], dim=1)
        num_images += 1
    return GeneratedParts(tuple(parts), ids, embeds)
