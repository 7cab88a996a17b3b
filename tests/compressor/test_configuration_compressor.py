"""CompressorConfig: every field checked."""

import pytest

from compressor import CompressorConfig


@pytest.mark.parametrize(
    "fields",
    [
        {"architecture": "transformer"},
        {"hidden_size": 0},
        {"num_latents": 0},
        {"num_layers": 0},
        {"num_heads": -1},
        {"head_dim": 7},
        {"text_window": -1},
        {"feed_forward_multiplier": 0.0},
        {"feed_forward_multiplier": 1e-6},
        {"rope_theta": 0.0},
    ],
)
def test_compressor_config_names_the_field_when_it_is_wrong(fields: dict) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        CompressorConfig(**fields)


def test_compressor_config_round_trips_when_written_as_dict() -> None:
    config = CompressorConfig(architecture="perceiver", hidden_size=96, feed_forward_multiplier=0.5)
    assert CompressorConfig(**config.to_dict()) == config
    assert (config.inner_size, config.feed_forward_size) == (256, 48)
