"""Floating-point operations of one call, counted while it runs: matrix products and attention.

torch's counter knows the attention kernels of GPUs only; here it learns the CPU's, and that a causal kernel skips the
pairs of tokens that may not see each other. Element-wise work (norms, activations, rotary turns) is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from compressor import Compressor
from moai.models.moai.configuration_moai import MoAIConfig
from moai.planning.counting import WholeModel, counting
from moai.planning.inference import count_answer
from moai.planning.planned_model import PlannedModel, SampleShape
from moai.planning.weight_sizes import build_empty

_KERNELS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_OPERATORS = tuple(
    getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}")
    for kernel in _KERNELS
    for suffix in ("", "_backward")
)


@dataclass(frozen=True)
class FlopCount:
    """Operations of one call; a multiplication with its addition counts two.

    Attributes:
        products: Of linear layers.
        attention: Of attention, scores and their sums; a causal kernel's over the pairs it may see.
        attention_in_full: The same with the pairs that causal kernels skip, as most published counts have it.
    """

    products: int
    attention: int
    attention_in_full: int

    @property
    def total(self) -> int:
        """Operations that are carried out."""
        return self.products + self.attention

    @property
    def total_in_full(self) -> int:
        """Operations if every token attended to every other."""
        return self.products + self.attention_in_full


def count_flops(call: Callable[[], Any]) -> FlopCount:
    """Run a call once and count.

    Args:
        call: What to count; autograd's backward pass inside it counts as well.

    Returns:
        The counts. Batched products (``bmm``), which spelled-out attention is made of, count as attention.
    """
    skipped: list[int] = []
    counter = FlopCounterMode(
        display=False, custom_mapping={operator: _attention_formula(operator, skipped) for operator in _OPERATORS}
    )
    counter.mod_tracker = WholeModel()
    with counter:
        call()
    counts = counter.get_flop_counts().get("Global", {})
    in_attention = {*_OPERATORS, torch.ops.aten.bmm, torch.ops.aten.baddbmm}
    in_full = sum(count for operator, count in counts.items() if operator in in_attention)
    return FlopCount(counter.get_total_flops() - in_full, in_full - sum(skipped), in_full)


def _attention_formula(operator: Any, skipped: list[int]) -> Callable[..., int]:
    """Count an attention kernel in full; note in ``skipped`` what it leaves out when it is causal."""
    names = [argument.name for argument in operator.default._schema.arguments]

    def formula(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        given = dict(zip(names, args, strict=False)) | kwargs
        query, key, value = (given[name].shape for name in ("query", "key", "value"))
        if names[0].startswith("grad_out"):
            full = sdpa_backward_flop_count(given[names[0]].shape, query, key, value)
        else:
            full = sdpa_flop_count(query, key, value)
        if given.get("is_causal"):
            num_queries, num_keys = query[-2], key[-2]
            seen = sum(min(index + 1, num_keys) for index in range(num_queries))  # torch aligns at the upper left
            skipped.append(full - full * seen // (num_queries * num_keys))
        return full

    formula._get_raw = True  # torch's mark for a formula that wants tensors, not shapes
    return formula


def describe_moai_7b(num_text_tokens: int = 64, num_words: int = 275) -> str:
    """One sentence: what the mixture adds to all of MoAI-7B's decoder, partial LoRA left out.

    Args:
        num_text_tokens: Of the prompt, beside the image's 1,225.
        num_words: Of the verbalization, beside the map's 1,225 patches.
    """
    model = PlannedModel.load("MoAI-7B")
    shape = SampleShape(num_text_tokens, num_words, 1)
    config = MoAIConfig(**(model.config.to_diff_dict() | {"plora_rank": 0}))
    bare_config = MoAIConfig(**(config.to_dict() | {"mixer": {"layers": ()}}))
    whole, bare_whole = (count_answer(replace(model, config=one), shape) for one in (config, bare_config))
    mixing = whole.prompt_flops - bare_whole.prompt_flops
    decoder = build_empty(config).model.language_model
    with counting(decoder) as count, torch.inference_mode():
        length, width = whole.prompt_length, config.text_config.hidden_size
        decoder(inputs_embeds=torch.empty(1, length, width, device="meta"))
    bare = count.flops
    vision = config.vision_config
    num_patches = (vision.image_size // vision.patch_size) ** 2
    with torch.device("meta"):
        compressor = Compressor(config.compressor_config)
        words, patches = torch.empty(1, num_words, width), torch.empty(1, num_patches, width)
    compressing = count_flops(lambda: compressor(words, None, patches)).total_in_full
    return (
        f"All of MoAI-7B, {config.text_config.num_hidden_layers} layers and {len(config.mixer_config.layers)} mixers, "
        f"a prompt of {num_patches:,} image and {num_text_tokens} text tokens, {num_words} auxiliary words and a map "
        f"of as many patches, counted without memory and with attention in full: decoder {bare / 1e12:.2f} TFLOP, "
        f"mixers {mixing / 1e12:.2f}, compressor {compressing / 1e12:.2f}; "
        f"a / c = {(bare + mixing + compressing) / bare:.3f}."
    )
