"""Memory and time of an answer, counted on a model's configuration: nothing is loaded.

Weights are counted exactly, the cache too; activations by the widest layer; operations by parameters and tokens. Of a
device's peak a share is assumed to be reached: :data:`EFFICIENCY` of its operations, :data:`BANDWIDTH_SHARE` of its
bandwidth.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

from moai.checkpoints.io.published_settings import PUBLISHED_DETECTOR, PUBLISHED_SEGMENTER
from moai.models.moai.configuration_moai import MoAIConfig
from moai.models.moai.quantization import ALWAYS_COMPUTE_DTYPE_MODULES, COMPUTE_DTYPE_MODULES
from moai.models.registry import MODEL_SPECS
from verbalizers import Verbalizer

from .weight_sizes import NF4_BYTES, ModelSize, count_model, count_published_verbalizers

__all__ = ["BITS", "DEVICES", "AnswerPlan", "AnswerShape", "Device", "ModelShape", "measure_verbalizers", "plan_answer"]

BITS = (16, 8, 4)
EFFICIENCY, BANDWIDTH_SHARE = 0.35, 0.6
_HALF = 2
_WEIGHT_FILES = ("*.safetensors", "*.onnx", "*.bin", "*.pt", "*.pdiparams")


@dataclass(frozen=True)
class Device:
    """Where a model runs, as its maker's data sheet has it.

    Attributes:
        name: Its name.
        memory_gb: 10^9 bytes.
        peak_tflops: bfloat16 (float16 where it has none), dense.
        bandwidth_gb: Of its memory, 10^9 bytes per second.
    """

    name: str
    memory_gb: float
    peak_tflops: float
    bandwidth_gb: float


DEVICES = (
    Device("H100", 80, 989, 3350),
    Device("A100", 80, 312, 2039),
    Device("RTX 4090", 24, 165, 1008),
    Device("L4", 24, 121, 300),
    Device("T4", 16, 65, 320),
)


@dataclass(frozen=True)
class AnswerShape:
    """Tokens of a question and its answer.

    Attributes:
        num_prompt_tokens: Of system prompt and question.
        num_auxiliary_tokens: Of the verbalization.
        num_answer_tokens: Of the answer.
        batch_size: Questions at a time.
        num_image_tokens: Of an image; None = as the configuration says.
    """

    num_prompt_tokens: int = 80
    num_auxiliary_tokens: int = 275
    num_answer_tokens: int = 128
    batch_size: int = 1
    num_image_tokens: int | None = None


@dataclass(frozen=True)
class ModelShape:
    """What is counted on a model without weights.

    Attributes:
        config: Its configuration.
        size: Its parameters.
        size_of_all: Likewise, where ``quantize_all`` shrinks more; None = nothing more.
        num_decoder: Parameters of the decoder's layers.
        num_low_rank: Of partial LoRA, which works at image tokens only.
        num_vision: Of the vision tower.
        num_head: Of the language modelling head.
    """

    config: PreTrainedConfig
    size: ModelSize
    size_of_all: ModelSize | None
    num_decoder: int
    num_low_rank: int
    num_vision: int
    num_head: int

    @classmethod
    def of(cls, config: PreTrainedConfig) -> ModelShape:
        """Build a model on torch's meta device and count it.

        Args:
            config: Of an image-text-to-text model.
        """
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        skipped = COMPUTE_DTYPE_MODULES if isinstance(config, MoAIConfig) else ("lm_head",)
        decoder, vision, low_rank = 0, 0, 0
        embedding = model.get_input_embeddings().weight
        parameters = dict(model.named_parameters())
        inner = model.get_decoder()
        ours = {id(parameter) for parameter in inner.parameters()} if inner is not None and inner is not model else None
        for name, parameter in parameters.items():
            if parameter is embedding:
                continue
            if "vision" in name or "visual" in name:
                vision += parameter.numel()
            elif ".update.lora_" in name:
                low_rank += parameter.numel()
            elif ours is None or id(parameter) in ours:
                decoder += parameter.numel()
        head, of_all = model.get_output_embeddings(), None
        if isinstance(config, MoAIConfig):
            tied = ("lm_head",) if config.tie_word_embeddings else ()
            of_all = count_model(model, (*ALWAYS_COMPUTE_DTYPE_MODULES, *tied))
        num_head = 0 if head is None else head.weight.numel()
        return cls(config, count_model(model, skipped), of_all, decoder, low_rank, vision, num_head)

    @classmethod
    def of_checkpoint(cls, name: str) -> ModelShape:
        """Count a checkpoint: of it, only the configuration is read.

        Args:
            name: Folder or hub name.
        """
        return cls.of(AutoConfig.from_pretrained(name))

    @classmethod
    def of_backbones(cls, vision: str, text: str) -> ModelShape:
        """Count the MoAI that `from_backbones` would build of two: only their configurations are read.

        Args:
            vision: Folder or hub name of a vision tower.
            text: Folder or hub name of a decoder.
        """
        tower, decoder = AutoConfig.from_pretrained(vision), AutoConfig.from_pretrained(text).get_text_config()
        tower = getattr(tower, "vision_config", None) or tower
        decoder.vocab_size += 1  # the image's placeholder
        return cls.of(MoAIConfig(vision_config=tower, text_config=decoder, image_token_id=decoder.vocab_size - 1))

    @property
    def reads_verbalization_apart(self) -> bool:
        """Whether a compressor reads the verbalization, which then stands in no prompt."""
        return "compressor" in self.size.parts

    def count_image_tokens(self) -> int:
        """Tokens of one image in the prompt.

        Raises:
            ValueError: The configuration does not tell.
        """
        config = self.config
        if getattr(config, "num_image_tokens", None):
            return config.num_image_tokens
        if config.model_type in MODEL_SPECS:  # it looks at images beside the prompt
            return 1
        patches = self._count_patches()
        merged = getattr(config, "scale_factor", None) or getattr(config.vision_config, "spatial_merge_size", None) or 1
        if not patches:
            raise ValueError(
                f"expected a configuration that tells how many tokens an image has, got a {config.model_type}. Name "
                "the number with --image-tokens."
            )
        return patches // merged**2

    def _count_patches(self) -> int:
        vision = getattr(self.config, "vision_config", None)
        side, patch = getattr(vision, "image_size", None), getattr(vision, "patch_size", None)
        return (side // patch) ** 2 if isinstance(side, int) and isinstance(patch, int) else 0


@dataclass(frozen=True)
class AnswerPlan:
    """What an answer takes; bytes.

    Attributes:
        bits: Of the linears that are shrunk.
        is_all: Whether those of vision tower, compressor and head are shrunk too (``--quantize-all``).
        weights: Of the model.
        cache: Keys and values of the whole sequence, in 16 bits.
        activations: The most at one time, a dequantized matrix included.
        verbalizers: Weights of the verbalizers, in 32 bits.
        prompt_flops: Operations until the first token.
        token_flops: Operations of every further one.
        token_bytes: Bytes that are read for every further one.
    """

    bits: int
    is_all: bool
    weights: float
    cache: float
    activations: float
    verbalizers: float
    prompt_flops: float
    token_flops: float
    token_bytes: float

    @property
    def peak(self) -> float:
        """All together."""
        return self.weights + self.cache + self.activations + self.verbalizers

    def seconds_on(self, device: Device) -> tuple[float, float]:
        """Seconds until the first token, and of every further one; without the verbalizers'."""
        flops, read = device.peak_tflops * 1e12 * EFFICIENCY, device.bandwidth_gb * 1e9 * BANDWIDTH_SHARE
        return self.prompt_flops / flops, max(self.token_flops / flops, self.token_bytes / read)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers by name."""
        return asdict(self) | {"peak": self.peak}


def plan_answer(
    model: ModelShape, shape: AnswerShape, bits: int, verbalizer_bytes: float = 0.0, is_all: bool = False
) -> AnswerPlan:
    """Count what an answer takes.

    Args:
        model: The model.
        shape: Of question and answer.
        bits: One of :data:`BITS`.
        verbalizer_bytes: What stands beside the model.
        is_all: Whether all of a MoAI is shrunk that can be.
    """
    text, batch = model.config.get_text_config(), shape.batch_size
    size = model.size_of_all if is_all and model.size_of_all is not None else model.size
    image = shape.num_image_tokens or model.count_image_tokens()
    words = 0 if model.reads_verbalization_apart else shape.num_auxiliary_tokens
    prompt = image + shape.num_prompt_tokens + words
    whole = prompt + shape.num_answer_tokens
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    key_heads = getattr(text, "num_key_value_heads", None) or heads
    cache = 2 * text.num_hidden_layers * key_heads * width * whole * batch * _HALF

    inner = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
    decoder_width = max(3 * inner + 4 * text.hidden_size, 12 * text.hidden_size)
    activations = prompt * batch * decoder_width * _HALF
    vision = getattr(model.config, "vision_config", None)
    patches, looks = max(image, model._count_patches()), batch * (1 + model.reads_verbalization_apart)
    vision_attention = 0
    if (hidden := getattr(vision, "hidden_size", None)) is not None:
        inner = getattr(vision, "intermediate_size", None) or 4 * hidden
        activations = max(activations, patches * looks * (3 * inner + 4 * hidden) * _HALF)
        vision_attention = 4 * patches**2 * hidden * (getattr(vision, "num_hidden_layers", None) or 0)
    activations += batch * text.vocab_size * 8  # logits in 32 bits and a copy
    if bits < 16:
        activations += size.largest_linear * _HALF

    others = size.num_parameters - model.num_decoder - model.num_low_rank - model.num_vision
    others -= text.vocab_size * text.hidden_size * (2 if size.parts.get("lm_head") else 1)
    attention = 4 * text.hidden_size * text.num_hidden_layers
    per_prompt = 2 * (model.num_decoder + max(others, 0)) * prompt + 2 * model.num_low_rank * image
    per_prompt += attention * prompt**2 + 2 * model.num_head
    prompt_flops = batch * per_prompt + looks * (2 * model.num_vision * patches + vision_attention)
    token_flops = batch * (2 * (model.num_decoder + model.num_head) + attention * whole)
    read = {16: _HALF, 8: 1.0, 4: NF4_BYTES}[bits]
    token_bytes = model.num_decoder * read + model.num_head * _HALF + cache
    weights = size.to_bytes(bits)
    return AnswerPlan(
        bits, is_all, weights, cache, activations, verbalizer_bytes, prompt_flops, token_flops, token_bytes
    )


def measure_verbalizers(verbalizers: Iterable[Verbalizer]) -> Mapping[str, int | None]:
    """Bytes of verbalizers' weights by kind; None = not known before they are fetched.

    Args:
        verbalizers: Built, not loaded.
    """
    sizes: dict[str, int | None] = {}
    for verbalizer in verbalizers:
        checkpoint = verbalizer.settings().get("checkpoint")
        if checkpoint is None:  # a package that brings its weights, or none
            package = importlib.util.find_spec(verbalizer.backend)
            folders = package.submodule_search_locations if package is not None else None
            sizes[verbalizer.kind] = _measure_folder(Path(folders[0])) if folders else 0
        elif Path(checkpoint).is_dir():
            sizes[verbalizer.kind] = _measure_folder(Path(checkpoint))
        elif str(checkpoint) in (PUBLISHED_SEGMENTER, PUBLISHED_DETECTOR):
            segmenter, detector = count_published_verbalizers().values()
            size = segmenter if str(checkpoint) == PUBLISHED_SEGMENTER else detector
            sizes[verbalizer.kind] = size.num_parameters * size.stored_bytes
        else:
            sizes[verbalizer.kind] = None
    return sizes


def _measure_folder(folder: Path) -> int:
    return sum(path.stat().st_size for pattern in _WEIGHT_FILES for path in folder.rglob(pattern))
