"""Settings of training.

A recipe (configs/train_stage1.yaml) names the fields of :class:`TrainSettings`; ``key=value`` words lie over it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictBool, StrictInt

from moai.models.registry import load_named
from moai.settings import Number, apply_overrides, read_yaml, settings, to_plain
from moai.settings import load_settings as load_any_settings

from .start import find_trained_spec

__all__ = [
    "ModelSettings",
    "NewModelSettings",
    "OptimizationSettings",
    "RunSettings",
    "SavingSettings",
    "TrainSettings",
    "TrainedParts",
    "WatchingSettings",
    "load_settings",
]

DTYPES = ("float32", "bfloat16", "float16")
#: PEFT's kinds of learned prompts.
PROMPT_LEARNING = ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "MULTITASK_PROMPT_TUNING", "CPT")
TRACKERS = ("tensorboard", "trackio", "wandb")


def _check(is_right: bool, message: str) -> None:
    if not is_right:
        raise ValueError(message)


@settings
class ModelSettings:
    """Settings of the model that training starts from.

    Attributes:
        path: A checkpoint (folder, bundled name, hub name) or the output of an earlier stage.
        type: Model type, as in a checkpoint's ``config.json``; None = what the checkpoint says.
        dtype: Of frozen weights in memory; None = the checkpoint's. Trained parameters are float32 always.
        quantization: ``none``, ``nf4`` or ``int8``: frozen linears (QLoRA, arXiv 2305.14314), where the model can.
        attn_implementation: ``sdpa``, ``flash_attention_2``, ...; None = transformers' choice.
        gradient_checkpointing: Recompute activations in the backward pass (non-reentrant) and save their memory.
    """

    path: str | None = None
    type: str | None = None
    dtype: str | None = None
    quantization: Literal["none", "nf4", "int8"] = "none"
    attn_implementation: str | None = None
    gradient_checkpointing: StrictBool = False

    def __post_init__(self) -> None:
        _check(self.path is not None or self.is_new, "expected a checkpoint in `model.path`, got none. Name one.")
        _check(
            self.dtype is None or self.dtype in DTYPES,
            f"`model.dtype` must be one of {', '.join(DTYPES)} or null, got {self.dtype!r}.",
        )

    @property
    def is_new(self) -> bool:
        """Whether a model that lies nowhere yet is to be made and written before training."""
        return False


@settings
class NewModelSettings(ModelSettings):
    """The same for a model that can be made new around a vision tower and a decoder.

    Attributes:
        vision: Vision tower of a new model, instead of ``path``: folder or hub name.
        text: Its decoder.
        fields: Other fields of the model's configuration.
    """

    vision: str | None = None
    text: str | None = None
    fields: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        has_backbones = self.vision is not None and self.text is not None
        _check(
            (self.path is not None) != has_backbones and (self.path is None or not (self.vision or self.text)),
            "expected `model.path`, or both `model.vision` and `model.text`; got "
            f"path={self.path!r}, vision={self.vision!r}, text={self.text!r}.",
        )
        super().__post_init__()
        _check(
            not self.fields or has_backbones, "`model.fields` describe a new model; with `model.path` leave them out."
        )

    @property
    def is_new(self) -> bool:
        """See :attr:`ModelSettings.is_new`."""
        return self.path is None


@settings
class TrainedParts:
    """The trained model.

    Attributes:
        parts: Parts that are trained whole, of those that the model's class declares; None = the model's own choice,
            nothing beside an adapter.
        adapter: Fields of a PEFT configuration, ``peft_type`` and what belongs to it: ``{peft_type: LORA, r: 16}``,
            ``{peft_type: P_TUNING, num_virtual_tokens: 20}``, ...; None = no adapter. ``target_modules`` are the
            decoder's linears where they are not named.
    """

    parts: tuple[str, ...] | None = None
    adapter: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        adapter = self.adapter
        _check(
            adapter is None or isinstance(adapter.get("peft_type"), str),
            f"expected `train.adapter` with a `peft_type`, for example {{peft_type: LORA, r: 16}}, got {adapter}.",
        )
        _check(
            not (self.parts and self.learns_prompt),
            f"a learned prompt is saved without other parts, got `train.parts` {list(self.parts or ())}. Leave them "
            "out.",
        )

    @property
    def has_adapter(self) -> bool:
        """Whether an adapter is trained."""
        return self.adapter is not None

    @property
    def learns_prompt(self) -> bool:
        """Whether the adapter is virtual tokens in front of the prompt, which no weights can take in."""
        return self.adapter is not None and self.adapter["peft_type"] in PROMPT_LEARNING


@settings
class OptimizationSettings:
    """Settings of the optimization: AdamW or Muon, linear warm-up, cosine.

    Attributes:
        num_steps: Optimizer steps; or give ``num_epochs``.
        num_epochs: Passes over the data.
        batch_size: Samples per optimizer step over ALL processes, so that a run means the same on any machine.
        micro_batch_size: Samples per process and forward pass; the rest is gradient accumulation.
        samples_per_image: So many samples of one image go through together and share one pass of vision tower and
            compressor; must divide ``micro_batch_size``.
        learning_rate: Peak.
        learning_rates: Peaks of single parts, as the model's class declares them (an adapter inside one learns at its
            rate).
        warmup_share: Share of the steps in which the rate rises linearly.
        final_share: The cosine ends at this share of the peak.
        averaged_share: The result holds the mean of the weights after each of the last steps, this share of them (arXiv
            1803.05407), which the last validation measures; 0 = the last weights.
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
    samples_per_image: StrictInt = 1
    learning_rate: Number = 1e-4
    learning_rates: dict[str, Number] = field(default_factory=dict)
    warmup_share: Number = 0.03
    final_share: Number = 0.0
    averaged_share: Number = 0.0
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
        together = self.samples_per_image
        _check(
            min(sizes) >= 1 and self.batch_size % self.micro_batch_size == 0,
            "`optimization.batch_size` must be a multiple of `micro_batch_size`, got "
            f"{self.batch_size} and {self.micro_batch_size}.",
        )
        _check(
            together >= 1 and self.micro_batch_size % together == 0,
            "`optimization.micro_batch_size` must be a multiple of `samples_per_image`, got "
            f"{self.micro_batch_size} and {together}.",
        )
        _check(self.learning_rate > 0, f"`optimization.learning_rate` must be positive, got {self.learning_rate}.")
        _check(0 <= self.warmup_share <= 1, f"`optimization.warmup_share` must be in [0, 1], got {self.warmup_share}.")
        share = self.averaged_share
        _check(0 <= share <= 1, f"`optimization.averaged_share` must be in [0, 1], got {share}.")
        _check(len(self.betas) == 2, f"`optimization.betas` must be two numbers, got {self.betas}.")

    def count_steps(self, steps_per_epoch: int) -> int:
        """Optimizer steps of the whole run."""
        return self.num_steps or max(1, round((self.num_epochs or 0) * steps_per_epoch))


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
        num_workers: Processes per rank that prepare batches; 0 = none; None = one where each rank has a core to spare.
    """

    output_folder: Path
    optimization: OptimizationSettings
    saving: SavingSettings = field(default_factory=SavingSettings)
    watching: WatchingSettings = field(default_factory=WatchingSettings)
    seed: StrictInt = 0
    num_processes: StrictInt | None = None
    num_workers: StrictInt | None = None

    def __post_init__(self) -> None:
        workers = self.num_workers
        _check(workers is None or workers >= 0, f"`num_workers` must be 0 or more, or null, got {workers}.")

    def to_dict(self) -> dict[str, Any]:
        """JSON-able fields, for the checkpoint and the trackers."""
        return to_plain(self)


@settings(kw_only=True)
class TrainSettings(RunSettings):
    """One stage of training; see :class:`RunSettings` for the rest.

    A model may add settings of its own: the class that its ``ModelSpec`` names.

    Attributes:
        model: What training starts from.
        train: What is trained.
        data: Fields of :class:`moai.data.training_data.DataSettings`.
        validation: The same for samples that are not learned from; their loss is logged and drawn.
    """

    model: ModelSettings
    train: TrainedParts = field(default_factory=TrainedParts)
    data: dict[str, Any] = field(default_factory=dict)
    validation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        output = self.saving.output
        _check(
            output != "adapter" or self.train.has_adapter,
            "`saving.output: adapter` needs an adapter that is trained (`train`), got none. Use merged.",
        )
        _check(
            output != "merged" or not self.train.learns_prompt,
            "`saving.output: merged` needs an adapter that weights can take in, got a learned prompt. Use adapter.",
        )

    @property
    def writes_adapter(self) -> bool:
        """Whether the result is an adapter, and not a whole model."""
        return self.train.has_adapter and self.saving.output != "merged"


def load_settings(
    source: str | Path | Mapping[str, Any] | TrainSettings, overrides: Sequence[str] = ()
) -> TrainSettings:
    """Settings from a recipe; their class is that of the model that it names.

    Args:
        source: A YAML file, a mapping, or settings.
        overrides: ``key=value`` words laid over it, for example ``["optimization.num_steps=10", "seed=1"]``.

    Raises:
        ValueError: A field is unknown, missing or wrong; the message names the known ones.
    """
    if isinstance(source, TrainSettings):
        return load_any_settings(type(source), source, overrides)
    content = apply_overrides(source if isinstance(source, Mapping) else read_yaml(source), overrides)
    model, settings_class = content.get("model"), TrainSettings
    if isinstance(model, Mapping):
        spec, model_type = find_trained_spec(model.get("path"), model.get("type"))
        content["model"], settings_class = {**model, "type": model_type}, load_named(spec.settings)
    return load_any_settings(settings_class, content)
