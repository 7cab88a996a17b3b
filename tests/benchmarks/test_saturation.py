"""What the measurement of saturated experts takes for an expert's attention is what the expert attends with."""

import pytest
import torch

from benchmarks.saturation import _attention, measure_attention
from mixer.experts import Expert
from moai.checkpoints.io.lookup import find_checkpoint
from moai.checkpoints.io.verbalizer_settings import VerbalizerSettings
from moai.models.moai.modeling_moai import MoAIForConditionalGeneration
from moai.models.moai.processing_moai import MoAIProcessor


@pytest.mark.parametrize("qk_norm", [False, True])
def test_attention_is_what_the_expert_attends_with(qk_norm: bool) -> None:
    expert = Expert(32, 4, 8, qk_norm=qk_norm)
    tokens, source, mask = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.rand(2, 7) > 0.3
    mask[:, 0] = True
    weights = _attention(expert, tokens, source, mask).softmax(-1)
    read = (weights @ expert.project(source)[1]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(expert.activation(expert.output(read)), expert(tokens, source, mask))


def test_bundled_experts_are_not_saturated_and_are_when_their_logits_grow() -> None:
    folder = find_checkpoint("moai-nano")
    model = MoAIForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = MoAIProcessor.from_pretrained(folder)
    words = VerbalizerSettings.load(folder).words
    rows = measure_attention(model, processor, 1, words)
    assert len(rows) == 4 * 6
    assert max(largest for _, largest, _, _ in rows) < 0.85
    assert all(1 / count < largest for _, largest, _, count in rows)
    with torch.no_grad():
        for layer in model.model.mixers.layers:
            for expert in (*layer.image_experts, *layer.language_experts):
                expert.key_norm.weight.mul_(50)
    grown = {name: largest for name, largest, _, _ in measure_attention(model, processor, 1, words)}
    assert all(grown[name] > largest for name, largest, _, _ in rows)
    assert min(largest for name, largest in grown.items() if name.endswith("auxiliary")) > 0.85
