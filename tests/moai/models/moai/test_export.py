"""torch.export and torch.compile: prompt and decoding step are graphs, and decoding never waits for the device."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model, real_word_logits
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import GenerationConfig, StaticCache
from transformers.exporters.exporter_dynamo import DynamoConfig, DynamoExporter
from transformers.exporters.utils import decompose_prefill_decode
from transformers.integrations.executorch import convert_and_export_with_cache

from mixer import Routing, TokenStream
from moai import MoAIForConditionalGeneration
from moai.models.cache_names import as_keyword

CACHE_LENGTH = 32


class HostReads(TorchDispatchMode):
    """Counts what makes a host wait for its GPU: values of tensors, and shapes that depend on them."""

    READS = ("_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.overloadpacket.__name__ in self.READS
        return func(*args, **(kwargs or {}))


def static_cache(model: MoAIForConditionalGeneration, batch_size: int = 2) -> StaticCache:
    text = model.config.text_config
    cache = StaticCache(config=text, max_cache_len=CACHE_LENGTH)
    device = torch.device("cpu")
    cache.early_initialization(batch_size, text.num_key_value_heads, text.head_dim, torch.float32, device)
    return cache


def run(callee: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits; the inputs' cache is left as it is."""
    with torch.no_grad():
        return real_word_logits(callee(**copy.deepcopy(inputs)).logits)


def generation_stages(model: MoAIForConditionalGeneration, **inputs: Any) -> dict[str, dict[str, Any]]:
    """What `generate` hands the model for the prompt and for a decoding step, beside a static cache."""
    settings = GenerationConfig(
        cache_implementation="static", max_cache_len=CACHE_LENGTH, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    stages = decompose_prefill_decode(model, build_tiny_inputs(model.config, **inputs), generation_config=settings)
    return {stage: given for stage, (_, given) in stages.items()}


VARIANTS = ({"seed": 2}, {"seed": 3, "num_words": (2, 5)}, {"seed": 4, "num_words": (5, 1)})


@pytest.mark.parametrize(("family", "plora_rank"), [("llama", 4), ("qwen3", 0)])
def test_exported_stages_answer_as_the_model_when_generate_captured_them(family: str, plora_rank: int) -> None:
    model = build_tiny_model(family, plora_rank=plora_rank)
    first = generation_stages(model)
    exporter = DynamoExporter()
    graphs = {stage: exporter.export(model, first[stage], DynamoConfig()) for stage in first}
    for variant in VARIANTS:
        stages = generation_stages(model, **variant)
        for stage, inputs in stages.items():
            torch.testing.assert_close(run(graphs[stage], inputs), run(model, inputs), atol=2e-5, rtol=1e-5)


def test_documented_export_answers_as_the_model_when_copied() -> None:
    text = (Path(__file__).resolve().parents[4] / "docs" / "deployment.md").read_text(encoding="utf-8")
    block = next(code for code in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL) if "DynamoExporter" in code)
    model = build_tiny_model()
    names: dict[str, Any] = {"model": model, "inputs": build_tiny_inputs(model.config)}
    exec(compile(block, "docs/deployment.md", "exec"), names)
    for stage in ("prefill", "decode"):
        inputs = names["stages"][stage][1]
        torch.testing.assert_close(run(names[stage], inputs), run(model, inputs), atol=2e-5, rtol=1e-5)


@pytest.mark.slow
def test_exported_prefill_answers_as_the_model_when_images_and_findings_are_its_inputs() -> None:
    model = build_tiny_model()
    sample = build_tiny_inputs(model.config) | as_keyword(static_cache(model))
    graph = DynamoExporter().export(model, sample, DynamoConfig(dynamic=True))
    for variant in (*VARIANTS, {"num_words": (9, 1), "num_auxiliary_words": (3, 8)}):
        inputs = build_tiny_inputs(model.config, **variant) | as_keyword(static_cache(model))
        torch.testing.assert_close(run(graph, inputs), run(model, inputs), atol=2e-5, rtol=1e-5)


def test_decoding_exports_when_transformers_recipe_is_used() -> None:
    model = build_tiny_model()
    model.generation_config.cache_implementation = "static"
    model.generation_config.cache_config = {"batch_size": 1, "max_cache_len": CACHE_LENGTH}
    graph = convert_and_export_with_cache(model).module()
    for ids in (torch.tensor([[7, 9, 20, 4]]), torch.tensor([[3, 250, 11]])):
        with torch.no_grad():
            steps = [graph(input_ids=ids[:, [n]], cache_position=torch.tensor([n])) for n in range(ids.shape[1])]
        expected = run(model, {"input_ids": ids})
        torch.testing.assert_close(real_word_logits(torch.cat(steps, dim=1)), expected, atol=1e-5, rtol=1e-5)


def test_parts_answer_as_in_the_model_when_exported_alone() -> None:
    body = build_tiny_model().model
    roles = build_tiny_inputs(body.config)["mm_token_type_ids"]
    hidden, auxiliary = torch.randn(2, roles.shape[1], 64), torch.randn(2, 4, 64)
    streams = {"image": TokenStream.from_roles(roles == 1), "language": TokenStream.from_roles(roles == 2)}
    given = {"hidden_states": hidden, "auxiliary_states": auxiliary, **streams, "routing": Routing("gated")}
    words = {"text_embeds": torch.randn(2, 5, 64), "text_mask": torch.tensor([[1] * 5, [0, 0, 1, 1, 1]])}
    pixels = {"pixel_values": torch.randn(2, 3, 28, 28)}
    for part, inputs in (
        (body.mixers, given | {"layer_idx": 1}),
        (body.compressor, words),
        (body.vision_tower, pixels),
    ):
        with torch.no_grad():
            expected = tree_leaves(part(**copy.deepcopy(inputs)))
        for graph in (
            torch.export.export(part, (), copy.deepcopy(inputs)).module(),
            DynamoExporter().export(part, copy.deepcopy(inputs), DynamoConfig()),
        ):
            got = tree_leaves(graph(**copy.deepcopy(inputs)))
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_export_says_what_it_needs_when_roles_are_missing() -> None:
    model = build_tiny_model()
    sample = build_tiny_inputs(model.config) | as_keyword(static_cache(model))
    del sample["mm_token_type_ids"]
    with pytest.raises(ValueError, match="mm_token_type_ids.*static cache in a traced graph"):
        DynamoExporter().export(model, sample, DynamoConfig())


@pytest.mark.parametrize("plora_rank", [0, 4])
def test_prompt_compiles_into_one_graph_when_asked(plora_rank: int) -> None:
    model = build_tiny_model(plora_rank=plora_rank)
    compiled = torch.compile(model, fullgraph=True, backend="eager")  # fullgraph raises where a graph would break
    for variant in VARIANTS:
        inputs = build_tiny_inputs(model.config, **variant)
        torch.testing.assert_close(run(compiled, inputs), run(model, inputs), atol=2e-5, rtol=1e-5)
    torch._dynamo.reset()


@pytest.mark.parametrize("num_tokens", [1, 3])
@pytest.mark.parametrize("is_filled", [True, False])
def test_words_alone_wait_for_the_device_as_rarely_as_the_plain_decoder(num_tokens: int, is_filled: bool) -> None:
    model = build_tiny_model()
    ids = torch.tensor([[7, 9, 20], [11, 3, 4]])[:, :num_tokens]
    roles = torch.full_like(ids, 0 if is_filled else 2)  # the processor names them for words alone too
    caches = [static_cache(model), static_cache(model), static_cache(model)]
    if is_filled:
        for cache in caches:
            model(**build_tiny_inputs(model.config), **as_keyword(cache))
    embeds = model.get_input_embeddings()(ids)
    counts = []
    for call in (
        lambda: model.model.language_model(inputs_embeds=embeds, **as_keyword(caches[0])),
        lambda: model(input_ids=ids, **as_keyword(caches[1])),
        lambda: model(input_ids=ids, mm_token_type_ids=roles, **as_keyword(caches[2])),
    ):
        with torch.no_grad(), HostReads() as reads:
            call()
        counts.append(reads.count)
    assert counts[1] <= counts[0] and counts[2] <= counts[0]
    with torch.no_grad(), HostReads() as reads:
        model(**build_tiny_inputs(model.config))
    assert reads.count > counts[0]  # an image's prompt does ask: the counter sees it
