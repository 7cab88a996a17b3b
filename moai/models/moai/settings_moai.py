"""Settings of MoAI's two stages of training."""

from __future__ import annotations

from dataclasses import field
from typing import Any, Literal

from pydantic import StrictBool, StrictInt

from moai.settings import Number, settings
from moai.training.train_settings import NewModelSettings, TrainedParts, TrainSettings

from .partial_lora import TARGET_LINEARS
from .pretrained_model import MoAIPreTrainedModel
from .routing_report import DRAWN_ROUTINGS

__all__ = ["MoAIModelSettings", "MoAITrainSettings", "MoAITrainedParts"]

FRESH_PARTS = ("projector", "compressor", "mixers", "gates")


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise ValueError(message)


@settings
class MoAIModelSettings(NewModelSettings):
    """Settings of the model that training starts from; see :class:`.NewModelSettings` for the rest.

    Attributes:
        gguf_file: GGUF file inside ``text``.
        compressor: Fields of ``CompressorConfig``; with ``path`` they lie over the checkpoint's, and the compressor
            starts anew.
        mixer: Fields of ``MixerConfig``, likewise.
        fresh_parts: Parts of the checkpoint to start anew: ``projector``, ``compressor``, ``mixers`` (gates included),
            ``gates``.
        keeps_fitting: A compressor or mixer of another size keeps the checkpoint's tensors whose shapes stay the same,
            and evenly chosen ones of its latents, some twice where there are more.
    """

    gguf_file: str | None = None
    compressor: dict[str, Any] = field(default_factory=dict)
    mixer: dict[str, Any] = field(default_factory=dict)
    fresh_parts: tuple[str, ...] = ()
    keeps_fitting: StrictBool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = sorted(set(self.fresh_parts) - set(FRESH_PARTS))
        _check(not unknown, f"`model.fresh_parts` may hold {', '.join(FRESH_PARTS)}, got {unknown}.")

    @property
    def is_new(self) -> bool:
        """See :attr:`.ModelSettings.is_new`: backbones, other sizes and parts that start anew make a new model."""
        return self.path is None or bool(self.fresh_parts or self.compressor or self.mixer)


@settings
class MoAITrainedParts(TrainedParts):
    """The trained model.

    Attributes:
        decoder: ``lora`` (low-rank adapters on its linears), ``full``, ``frozen``, or ``adapter``: what ``adapter``
            describes.
        compressor: The compressor.
        mixers: The experts of every mixer layer.
        gates: The gates; None = in stage 2 only, as in the paper.
        projector: The projector of image features.
        vision_tower: The vision tower.
        lora_rank: Rank of the adapters.
        lora_alpha: Their scale numerator; None = twice the rank.
        lora_dropout: Dropout before the adapters.
        lora_linears: The decoder's linears that are adapted.
    """

    decoder: Literal["lora", "full", "frozen", "adapter"] = "lora"
    compressor: StrictBool = True
    mixers: StrictBool = True
    gates: StrictBool | None = None
    projector: StrictBool = True
    vision_tower: StrictBool = False
    lora_rank: StrictInt = 64
    lora_alpha: Number | None = None
    lora_dropout: Number = 0.05
    lora_linears: tuple[str, ...] = TARGET_LINEARS

    def __post_init__(self) -> None:
        _check(self.parts is None, "the parts of a MoAI are switched one by one (`train.compressor`, ...), not named.")
        super().__post_init__()
        _check(self.lora_rank >= 1, f"`train.lora_rank` must be at least 1, got {self.lora_rank}.")
        _check(0 <= self.lora_dropout < 1, f"`train.lora_dropout` must be in [0, 1), got {self.lora_dropout}.")
        _check(
            (self.decoder == "adapter") == (self.adapter is not None),
            f"`train.decoder: adapter` and `train.adapter` belong together, got {self.decoder!r} and {self.adapter}.",
        )
        whole = [name for name in ("compressor", "mixers", "projector", "vision_tower") if getattr(self, name)]
        _check(self.decoder != "frozen" or bool(whole), "`train` leaves nothing to train. Switch a part on.")
        _check(
            not (self.learns_prompt and (whole or self.gates)),
            f"a learned prompt is saved without other parts, got {', '.join(whole or ['gates'])}. Switch them off "
            "(`train`).",
        )

    @property
    def has_adapter(self) -> bool:
        """See :attr:`.TrainedParts.has_adapter`."""
        return self.decoder in ("lora", "adapter")


@settings(kw_only=True)
class MoAITrainSettings(TrainSettings):
    """One stage of training; see :class:`.TrainSettings` for the rest.

    Attributes:
        stage: 1 = one random expert per stream and layer, gates fixed; 2 = the gates are trained too and mix.
        routing: None = the stage's own (``random_expert`` in stage 1, ``gated`` in stage 2), or ``gated``, ``uniform``,
            ``random_expert``, ``random_weights`` (from a flat Dirichlet distribution, others at every step): the
            ablations.
        top_k: Experts mixed per token when the gates decide.
    """

    stage: Literal[1, 2]
    model: MoAIModelSettings
    train: MoAITrainedParts = field(default_factory=MoAITrainedParts)
    routing: Literal[DRAWN_ROUTINGS] | None = None
    top_k: StrictInt = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = tuple(MoAIPreTrainedModel.trainable_parts)
        unknown = sorted(set(self.optimization.learning_rates) - set(parts))
        _check(not unknown, f"`optimization.learning_rates` may name {', '.join(parts)}, got {unknown}.")
        _check(1 <= self.top_k <= 3, f"`top_k` must be 1 to 3, got {self.top_k}.")
        _check(
            self.model.quantization == "none" or self.train.decoder != "full",
            "a quantised decoder cannot be trained in full; `train.decoder` must be lora or frozen.",
        )

    @property
    def trains_gates(self) -> bool:
        """Whether the gates are trained."""
        if self.train.gates is None:
            return self.stage == 2 and not self.train.learns_prompt
        return self.train.gates

    @property
    def routing_mode(self) -> str:
        """Routing mode of the stage."""
        return self.routing or ("random_expert" if self.stage == 1 else "gated")
