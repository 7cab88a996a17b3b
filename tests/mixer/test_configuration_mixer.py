"""MixerConfig: every field checked, and where mixers sit."""

import pytest

from mixer import MixerConfig, evenly_spaced_layers


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": (3, 1)},
        {"layers": (1, 1)},
        {"layers": (-1, 2)},
        {"hidden_size": 0},
        {"rank": 0},
        {"num_heads": 0},
        {"num_heads": 3},
        {"routing": "dense"},
        {"top_k": 0},
        {"top_k": 4},
        {"init_scale": 0.0},
        {"output_init_scale": -1.0},
    ],
)
def test_mixer_config_names_the_field_when_it_is_wrong(fields: dict) -> None:
    (name,) = fields
    with pytest.raises(ValueError, match=name):
        MixerConfig(**fields)


def test_mixer_config_round_trips_when_written_as_dict() -> None:
    config = MixerConfig(hidden_size=64, layers=(0, 2), rank=8, use_activation=False, routing="uniform", top_k=2)
    assert MixerConfig(**config.to_dict()) == config


@pytest.mark.parametrize(
    ("depth", "count", "layers"),
    [(32, 4, (7, 15, 23, 31)), (8, 2, (3, 7)), (5, 2, (1, 4)), (3, 3, (0, 1, 2)), (4, 0, ())],
)
def test_mixers_end_on_the_last_layer_when_evenly_spaced(depth: int, count: int, layers: tuple) -> None:
    assert evenly_spaced_layers(depth, count) == layers


@pytest.mark.parametrize("count", [-1, 5])
def test_mixers_are_refused_when_more_than_layers(count: int) -> None:
    with pytest.raises(ValueError, match="0 to 4"):
        evenly_spaced_layers(4, count)
