"""The mixer: six cross- and self-attention experts and two gates at chosen decoder layers."""

from .configuration_mixer import (
    IMAGE_EXPERTS,
    LANGUAGE_EXPERTS,
    NUM_EXPERTS,
    ROUTING_MODES,
    MixerConfig,
    evenly_spaced_layers,
)
from .experts import Expert, LowRankProjection
from .gating import Gate
from .modeling_mixer import LayerRouting, MixerLayer, Mixers, TokenStream, find_auxiliary_rows
from .routing import Routing, draw_experts, resolve_routing

__all__ = [
    "IMAGE_EXPERTS",
    "LANGUAGE_EXPERTS",
    "NUM_EXPERTS",
    "ROUTING_MODES",
    "Expert",
    "Gate",
    "LayerRouting",
    "LowRankProjection",
    "MixerConfig",
    "MixerLayer",
    "Mixers",
    "Routing",
    "TokenStream",
    "draw_experts",
    "evenly_spaced_layers",
    "find_auxiliary_rows",
    "resolve_routing",
]
