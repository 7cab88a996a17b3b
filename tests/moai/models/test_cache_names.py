"""The decoder's cache under the names of transformers 5.23 and 5.24."""

import pytest
import torch
from builders import build_tiny_inputs, build_tiny_model
from transformers import DynamicCache

from moai.models.cache_names import CACHE_NAME


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_cache_is_known_by_both_names_when_passed_and_returned(name: str) -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config, (5,), (6,))
    with torch.no_grad():
        first = model(**inputs, use_cache=True)
        assert first.cache is first.past_key_values
        assert first[CACHE_NAME] is first.cache
        length = first.cache.get_seq_length()
        token = first.logits[:, -1:].argmax(dim=-1)
        step = model(input_ids=token, **{name: first.cache}, use_cache=True)
        again = model.model(input_ids=token, **{name: step.cache}, use_cache=True)
    assert length == inputs["input_ids"].shape[1]
    assert again.cache is again.past_key_values is first.cache
    assert first.cache.get_seq_length() == length + 2


def test_cache_wins_when_both_names_are_given() -> None:
    model = build_tiny_model()
    inputs = build_tiny_inputs(model.config, (5,), (6,))
    ours, theirs = DynamicCache(config=model.config.text_config), DynamicCache(config=model.config.text_config)
    with torch.no_grad():
        output = model(**inputs, cache=ours, past_key_values=theirs, use_cache=True)
    assert output.cache is ours
    assert theirs.get_seq_length() == 0
