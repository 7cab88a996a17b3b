"""Settings of training.

A recipe (configs/train_stage1.yaml) names the fields of :class:`TrainSettings`; ``key=value`` words lie over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictBool, StrictInt

from moai.models.moai.partial_lora import TARGET_LINEARS
from moai.models.moai.pretrained_model import MoAIPreTrainedModel
from moai.settings import Number, settings, to_plain
from moai.settings import load_settings as load_any_settings

__all__ = [
    "ModelSettings",
    "OptimizationSettings",
    "RunSettings",
    "SavingSettings",
    "TrainSettings",
    "TrainedParts",
    "WatchingSettings",
    "load_settings",
]

DTYPES = ("float32", "bfloat16", "float16")
FRESH_PARTS = ("projector", "compressor", "mixers", "gates")
TRACKERS = ("tensorboard", "trackio", "wandb")


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise ValueError(message)


@settings
class ModelSettings:
    """Settings of the model that training starts from.

    Attributes:
        path: A checkpoint (folder, bundled name, hub name) or the output of an earlier stage.
        vision: Vision tower of a new MoAI, instead of ``path``; see ``MoAIForConditionalGeneration.from_backbones``.
        text: Its decoder.
        gguf_file: GGUF file inside ``text``.
        fields: Other fields of ``MoAIConfig`` for a new MoAI (``plora_rank``, ``image_seq_length``, ...).
        compressor: Fields of ``CompressorConfig``; with ``path`` they lie over the checkpoint's, and the compressor
            starts anew.
        mixer: Fields of ``MixerConfig``, likewise.
        fresh_parts: Parts of the checkpoint to start anew: ``projector``, ``compressor``, ``mixers`` (gates included),
            ``gates``.
        keeps_fitting: A compressor or mixer of another size keeps the checkpoint's tensors whose shapes stay the same,
            and evenly chosen ones of its latents where there are fewer.
        dtype: Of frozen weights in memory; None = the checkpoint's. Trained parameters are float32 always.
        quantization: ``none``, ``nf4`` or ``int8``: the decoder's frozen linears (QLoRA, arXiv 2305.14314).
        attn_implementation: ``sdpa``, ``flash_attention_2``, ...; None = transformers' choice.
        gradient_checkpointing: Recompute activations in the backward pass (non-reentrant) and save their memory.
    """

    path: str | None = None
    vision: str | None = None
    text: str | None = None
    gguf_file: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)
    compressor: dict[str, Any] = field(default_factory=dict)
    mixer: dict[str, Any] = field(default_factory=dict)
    fresh_parts: tuple[str, ...] = ()
    keeps_fitting: StrictBool = False
    dtype: str | None = None
    quantization: Literal["none", "nf4", "int8"] = "none"
    attn_implementation: str | None = None
    gradient_checkpointing: StrictBool = False

    def __post_init__(self) -> None:
        has_backbones = self.vision is not None and self.text is not None
        _check(
            (self.path is not None) != has_backbones and (self.path is None or not (self.vision or self.text)),
            "expected `model.path`, or both `model.vision` and `model.text`; got "
            f"path={self.path!r}, vision={self.vision!r}, text={self.text!r}.",
        )
        _check(
            self.dtype is None or self.dtype in DTYPES,
            f"`model.dtype` must be one of {', '.join(DTYPES)} or null, got {self.dtype!r}.",
        )
        unknown = sorted(set(self.fresh_parts) - set(FRESH_PARTS))
        _check(not unknown, f"`model.fresh_parts` may hold {', '.join(FRESH_PARTS)}, got {unknown}.")
        _check(
            not self.fields or has_backbones, "`model.fields` describe a new MoAI; with `model.path` leave them out."
        )


@settings
class TrainedParts:
    """The trained model.

    Attributes:
        decoder: ``lora`` (low-rank adapters on its linears), ``full`` or ``frozen``.
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

    decoder: Literal["lora", "full", "frozen"] = "lora"
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
        _check(self.lora_rank >= 1, f"`train.lora_rank` must be at least 1, got {self.lora_rank}.")
        _check(0 <= self.lora_dropout < 1, f"`train.lora_dropout` must be in [0, 1), got {self.lora_dropout}.")
        _check(
            self.decoder != "frozen" or any((self.compressor, self.mixers, self.projector, self.vision_tower)),
            "`train` leaves nothing to train. Switch a part on.",
        )


@settings
class OptimizationSettings:
    """Settings of the optimization: AdamW or Muon, linear warm-up, cosine.

    Attributes:
        num_steps: Optimizer steps; or give ``num_epochs``.
        num_epochs: Passes over the data.
        batch_size: Samples per optimizer step over ALL processes, so that a run means the same on any machine.
        micro_batch_size: Samples per process and forward pass; the rest is gradient accumulation.
        samples_per_picture: So many samples of one image go through together and share one pass of vision tower and
            compressor; must divide ``micro_batch_size``.
        learning_rate: Peak.
        learning_rates: Peaks of single parts; of a MoAI: ``decoder``, ``compressor``, ``mixers``, ``gates``,
            ``projector``, ``vision_tower``.
        warmup_share: Share of the steps in which the rate rises linearly.
        final_share: The cosine ends at this share of the peak.
        optimizer: ``adamw``; or ``muon``: orthogonalised updates (:class:`torch.optim.Muon`) for matrices, AdamW for
            the rest, at one rate.
        weight_decay: Of matrices; vectors (norms, biases), embeddings and latents have none.
        betas: Of AdamW.
        epsilon: Of AdamW.
        clip_norm: Largest gradient norm; 0 = not clipped.
        precision: ``fp32``, or ``bf16``: autocast of the forward pass.
        is_length_grouped: Samples of a batch are of similar length.
    """

    num_steps: StrictInt | None = None
    num_epochs: Number | None = None
    batch_size: StrictInt = 16
    micro_batch_size: StrictInt = 4
    samples_per_picture: StrictInt = 1
    learning_rate: Number = 1e-4
    learning_rates: dict[str, Number] = field(default_factory=dict)
    warmup_share: Number = 0.03
    final_share: Number = 0.0
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: Number = 0.05
    betas: tuple[Number, ...] = (0.9, 0.999)
    epsilon: Number = 1e-8
    clip_norm: Number = 1.0
    precision: Literal["fp32", "bf16"] = "fp32"
    is_length_grouped: StrictBool = True

    def __post_init__(self) -> None:
        given = (self.num_steps, self.num_epochs)
        _check(
            (self.num_steps is None) != (self.num_epochs is None)
            and all(value is None or value > 0 for value in given),
            "expected one positive number in `optimization.num_steps` or `optimization.num_epochs`, got "
            f"{self.num_steps} and {self.num_epochs}.",
        )
        sizes = (self.batch_size, self.micro_batch_size)
        together = self.samples_per_picture
        _check(
            min(sizes) >= 1 and self.batch_size % self.micro_batch_size == 0,
            "`optimization.batch_size` must be a multiple of `micro_batch_size`, got "
            f"{self.batch_size} and {self.micro_batch_size}.",
        )
        _check(
            together >= 1 and self.micro_batch_size % together == 0,
            "`optimization.micro_batch_size` must be a multiple of `samples_per_picture`, got "
            f"{self.micro_batch_size} and {together}.",
        )
        _check(self.learning_rate > 0, f"`optimization.learning_rate` must be positive, got {self.learning_rate}.")
        _check(0 <= self.warmup_share <= 1, f"`optimization.warmup_share` must be in [0, 1], got {self.warmup_share}.")
        _check(len(self.betas) == 2, f"`optimization.betas` must be two numbers, got {self.betas}.")


@settings
class SavingSettings:
    """Settings of checkpoints and results.

    Attributes:
        every_steps: Optimizer steps between checkpoints; 0 = only at the end and when stopped.
        keep: Checkpoints that are kept.
        output: ``adapter`` (small; LoRA decoders), ``merged`` (a whole model), or None: adapter where there is one.
        dtype: Of the saved weights; None = float32 in an adapter, the base model's in a merged one.
    """

    every_steps: StrictInt = 200
    keep: StrictInt = 2
    output: Literal["adapter", "merged"] | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        _check(self.every_steps >= 0, f"`saving.every_steps` must be 0 or more, got {self.every_steps}.")
        _check(self.keep >= 1, f"`saving.keep` must be at least 1, got {self.keep}.")
        _check(
            self.dtype is None or self.dtype in DTYPES,
            f"`saving.dtype` must be one of {', '.join(DTYPES)} or null, got {self.dtype!r}.",
        )


@settings
class WatchingSettings:
    """Settings of logging.

    Attributes:
        every_steps: Optimizer steps between log lines.
        validate_every_steps: Optimizer steps between measurements of the validation loss, where there is such data;
            0 = at the end only.
        report_to: Trackers: ``tensorboard``, ``trackio``, ``wandb``.
        project: Name of the project in them.
        is_live: A live table; None = where standard output is a terminal.
        has_plots: Draw loss and routing at the end (needs matplotlib; without it a line says so).
    """

    every_steps: StrictInt = 10
    validate_every_steps: StrictInt = 200
    report_to: tuple[str, ...] = ()
    project: str = "moai"
    is_live: StrictBool | None = None
    has_plots: StrictBool = True

    def __post_init__(self) -> None:
        _check(self.every_steps >= 1, f"`watching.every_steps` must be at least 1, got {self.every_steps}.")
        every = self.validate_every_steps
        _check(every >= 0, f"`watching.validate_every_steps` must be 0 or more, got {every}.")
        unknown = sorted(set(self.report_to) - set(TRACKERS))
        _check(not unknown, f"`watching.report_to` may hold {', '.join(TRACKERS)}, got {unknown}.")


@settings(kw_only=True)
class RunSettings:
    """Settings of any run of the trainer.

    Attributes:
        output_folder: Receives the result, checkpoints/, log.jsonl and plots. Running again continues it.
        optimization: How.
        saving: What is kept.
        watching: What is shown.
        seed: Of everything that is drawn.
        num_processes: How many processes are expected; None = any number. A launcher that starts fewer is an error.
        num_workers: Processes per rank that prepare batches; 0 = none.
    """

    output_folder: Path
    optimization: OptimizationSettings
    saving: SavingSettings = field(default_factory=SavingSettings)
    watching: WatchingSettings = field(default_factory=WatchingSettings)
    seed: StrictInt = 0
    num_processes: StrictInt | None = None
    num_workers: StrictInt = 0

    def __post_init__(self) -> None:
        _check(self.num_workers >= 0, f"`num_workers` must be 0 or more, got {self.num_workers}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields, for the checkpoint and the trackers."""
        return to_plain(self)


@settings(kw_only=True)
class TrainSettings(RunSettings):
    """One stage of training; see :class:`RunSettings` for the rest.

    Attributes:
        stage: 1 = one random expert per stream and layer, gates fixed; 2 = the gates are trained too and mix.
        model: What training starts from.
        train: What is trained.
        data: Fields of :class:`moai.data.training_data.DataSettings`.
        validation: The same for samples that are not learned from; their loss is logged and drawn.
        routing: None = the stage's own (``random_expert`` in stage 1, ``gated`` in stage 2), or ``gated``, ``uniform``,
            ``random_expert``, ``random_weights`` (from a flat Dirichlet distribution, others at every step): the
            ablations.
        top_k: Experts mixed per token when the gates decide.
    """

    stage: Literal[1, 2]
    model: ModelSettings
    train: TrainedParts = field(default_factory=TrainedParts)
    data: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)
    routing: Literal["gated", "uniform", "random_expert", "random_weights"] | None = None
    top_k: StrictInt = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        parts = tuple(MoAIPreTrainedModel.trainable_parts)
        unknown = sorted(set(self.optimization.learning_rates) - set(parts))
        _check(not unknown, f"`optimization.learning_rates` may name {', '.join(parts)}, got {unknown}.")
        _check(1 <= self.top_k <= 3, f"`top_k` must be 1 to 3, got {self.top_k}.")
        _check(
            self.saving.output != "adapter" or self.train.decoder == "lora",
            f"`saving.output: adapter` needs `train.decoder: lora`, got {self.train.decoder!r}. Use merged.",
        )
        _check(
            self.model.quantization == "none" or self.train.decoder != "full",
            "a quantised decoder cannot be trained in full; `train.decoder` must be lora or frozen.",
        )

    @property
    def trains_gates(self) -> bool:
        """Whether the gates are trained."""
        return self.stage == 2 if self.train.gates is None else self.train.gates

    @property
    def routing_mode(self) -> str:
        """Routing mode of the stage."""
        return self.routing or ("random_expert" if self.stage == 1 else "gated")


def load_settings(
    source: str | Path | Mapping[str, Any] | TrainSettings, overrides: Sequence[str] = ()
) -> TrainSettings:
    """Settings from a recipe.

    Args:
        source: A YAML file, a mapping, or settings.
        overrides: ``key=value`` words laid over it, for example ``["optimization.num_steps=10", "seed=1"]``.

    Raises:
        ValueError: A field is unknown, missing or wrong; the message names the known ones.
    """
    return load_any_settings(TrainSettings, source, overrides)
