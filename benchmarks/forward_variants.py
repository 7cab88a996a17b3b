"""What benchmarks/forward.py compares: one model of fixed proportions, one prompt, four ways to run them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch.nn import functional as F
from transformers import DynamicCache, LlamaForCausalLM

from benchmarks.release_form import IMAGE_ROLE, LANGUAGE_ROLE, ReleaseForm
from compressor import Compressor, CompressorConfig
from moai import MoAIConfig, MoAIForConditionalGeneration
from moai.models.cache_names import as_keyword, read_cache

OURS, ENCODER, RELEASE, BACKBONE = "ours", "encoder", "release", "backbone"
VARIANTS = (OURS, ENCODER, RELEASE, BACKBONE)
PHASES = ("prefill", "decode", "training")
NUM_ANSWER_TOKENS = 16
NUM_DECODE_STEPS = 4  # per timed call: a single step is short for a clock, many are long beside other programs


@dataclass(frozen=True)
class Sizes:
    """Sizes of the measured model and prompt; the defaults are MoAI-7B's proportions in small."""

    hidden_size: int = 256
    num_layers: int = 8
    num_mixers: int = 2
    image_grid: int = 35
    num_text_tokens: int = 64
    num_auxiliary_words: int = 64
    vocab_size: int = 8192
    num_heads: int = 8
    num_key_value_heads: int = 2
    dtype: torch.dtype = torch.float32

    @property
    def num_image_tokens(self) -> int:
        """Patch tokens of one image, and of one map."""
        return self.image_grid**2


SIZES = {
    "small": Sizes(),
    # Two of InternLM2-7B's layers, one of them mixed (MoAI-7B mixes one in eight), and a 336 px image.
    "7b": Sizes(
        hidden_size=4096, num_layers=2, num_mixers=1, image_grid=24, num_auxiliary_words=256,
        num_heads=32, num_key_value_heads=8, dtype=torch.bfloat16,
    ),
}  # fmt: skip


@dataclass
class Prompt:
    """One batch of inputs, as the variants take them.

    Attributes:
        input_ids: ``(B, L)`` image placeholders, then text.
        roles: ``(B, L)`` 1 image, 2 text.
        training_roles: ``(B, L)`` the same with the answer's tokens 0.
        labels: ``(B, L)`` the answer's ids, else -100.
        image_features: ``(B, P, D)``.
        words: ``(B, A, D)`` embeddings of the auxiliary words.
        map_features: ``(B, P, D)`` features of the map's patches.
        next_ids: ``(B, 1)`` the token a decode step takes.
    """

    input_ids: torch.Tensor
    roles: torch.Tensor
    training_roles: torch.Tensor
    labels: torch.Tensor
    image_features: torch.Tensor
    words: torch.Tensor
    map_features: torch.Tensor
    next_ids: torch.Tensor
    attention_mask: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.attention_mask = torch.ones_like(self.input_ids)


def build_model(sizes: Sizes, architecture: str, device: torch.device) -> MoAIForConditionalGeneration:
    """Build a MoAI of the measured sizes with seeded random weights and live gates."""
    torch.manual_seed(0)
    config = MoAIConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 64,
            "intermediate_size": 64,
            "num_hidden_layers": 1,
            "num_attention_heads": 1,
            "image_size": 14 * sizes.image_grid,
            "patch_size": 14,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": sizes.vocab_size,
            "hidden_size": sizes.hidden_size,
            "intermediate_size": sizes.hidden_size * 7 // 2,
            "num_hidden_layers": sizes.num_layers,
            "num_attention_heads": sizes.num_heads,
            "num_key_value_heads": sizes.num_key_value_heads,
            "max_position_embeddings": 4096,
        },
        compressor={"architecture": architecture},
        mixer={"layers": [(index + 1) * sizes.num_layers // sizes.num_mixers - 1 for index in range(sizes.num_mixers)]},
        image_token_id=sizes.vocab_size - 1,
    )
    model = MoAIForConditionalGeneration(config)
    for mixer in model.model.mixers.layers:
        for gate in (mixer.image_gate, mixer.language_gate):
            torch.nn.init.normal_(gate.weight, std=0.05)
    return model.to(device, sizes.dtype)


def build_prompt(sizes: Sizes, batch: int, device: torch.device) -> Prompt:
    """Draw a seeded batch."""
    generator = torch.Generator().manual_seed(1)
    num_image, num_text = sizes.num_image_tokens, sizes.num_text_tokens
    image_ids = torch.full((batch, num_image), sizes.vocab_size - 1)
    text_ids = torch.randint(3, sizes.vocab_size - 1, (batch, num_text), generator=generator)
    input_ids = torch.cat([image_ids, text_ids], dim=1)
    roles = torch.where(input_ids == sizes.vocab_size - 1, IMAGE_ROLE, LANGUAGE_ROLE)
    training_roles, labels = roles.clone(), torch.full_like(input_ids, -100)
    training_roles[:, -NUM_ANSWER_TOKENS:] = 0
    labels[:, -NUM_ANSWER_TOKENS:] = input_ids[:, -NUM_ANSWER_TOKENS:]

    def draw(count: int) -> torch.Tensor:
        return torch.randn(batch, count, sizes.hidden_size, generator=generator).to(sizes.dtype)

    tensors = (
        input_ids, roles, training_roles, labels,
        draw(num_image), draw(sizes.num_auxiliary_words), draw(num_image), text_ids[:, :1],
    )  # fmt: skip
    return Prompt(*(tensor.to(device) for tensor in tensors))


class OursRunner:
    """(a), and with another compressor over the same weights (a+)."""

    def __init__(
        self, model: MoAIForConditionalGeneration, prompt: Prompt, compressor: Compressor | None = None
    ) -> None:
        self.model, self.prompt = model, prompt
        self.compressor = compressor or model.model.compressor
        self.cache: DynamicCache | None = None

    def _forward(self, roles: torch.Tensor, **arguments) -> object:
        auxiliary_states = self.compressor(self.prompt.words, None, self.prompt.map_features)
        return self.model(
            input_ids=self.prompt.input_ids,
            attention_mask=self.prompt.attention_mask,
            mm_token_type_ids=roles,
            image_features=self.prompt.image_features,
            auxiliary_states=auxiliary_states,
            **arguments,
        )

    @torch.no_grad()
    def prefill(self) -> torch.Tensor:
        """Return ``(B, 1, V)`` logits; keeps the cache for :meth:`decode`."""
        output = self._forward(self.prompt.roles, use_cache=True, logits_to_keep=1)
        self.cache = output.cache
        return output.logits

    @torch.no_grad()
    def decode(self) -> torch.Tensor:
        """Run decode steps on the filled cache and forget them again."""
        for _ in range(NUM_DECODE_STEPS):
            output = self.model(input_ids=self.prompt.next_ids, use_cache=True, **as_keyword(self.cache))
        self.cache.crop(-NUM_DECODE_STEPS)
        return output.logits

    def training(self) -> torch.Tensor:
        """Forward, loss, backward."""
        self.model.zero_grad(set_to_none=True)
        self.compressor.zero_grad(set_to_none=True)
        loss = self._forward(self.prompt.training_roles, labels=self.prompt.labels, use_cache=False).loss
        loss.backward()
        return loss.detach()


class ReleaseRunner:
    """(b)."""

    def __init__(self, model: MoAIForConditionalGeneration, prompt: Prompt) -> None:
        self.model, self.prompt, self.form = model, prompt, ReleaseForm(model)
        self.past: list | None = None

    def _forward(self, roles: torch.Tensor, num_logits: int) -> tuple[torch.Tensor, list]:
        prompt = self.prompt
        embeds = self.model.get_input_embeddings()(prompt.input_ids)
        embeds = embeds.masked_scatter((prompt.roles == IMAGE_ROLE)[..., None], prompt.image_features)
        return self.form(embeds, torch.cat([prompt.words, prompt.map_features], dim=1), roles, num_logits=num_logits)

    @torch.no_grad()
    def prefill(self) -> torch.Tensor:
        """As :meth:`OursRunner.prefill`."""
        logits, self.past = self._forward(self.prompt.roles, num_logits=1)
        return logits

    @torch.no_grad()
    def decode(self) -> torch.Tensor:
        """As :meth:`OursRunner.decode`."""
        past = self.past
        for _ in range(NUM_DECODE_STEPS):
            logits, past = self.form(self.model.get_input_embeddings()(self.prompt.next_ids), past=past)
        return logits

    def training(self) -> torch.Tensor:
        """As :meth:`OursRunner.training`."""
        self.model.zero_grad(set_to_none=True)
        logits, _ = self._forward(self.prompt.training_roles, num_logits=0)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), self.prompt.labels[:, 1:].flatten())
        loss.backward()
        return loss.detach()


class BackboneRunner:
    """(c)."""

    def __init__(self, model: MoAIForConditionalGeneration, prompt: Prompt) -> None:
        self.prompt, decoder = prompt, model.model.language_model
        with torch.device("meta"):
            self.model = LlamaForCausalLM(model.config.text_config)
        # The same memory, not a copy: both sides find the same weights in the processor's cache.
        self.model.model.load_state_dict(decoder.state_dict(), assign=True)
        self.model.model.rotary_emb = decoder.rotary_emb
        self.model.lm_head.load_state_dict(model.lm_head.state_dict(), assign=True)
        self.cache: DynamicCache | None = None

    def _forward(self, **arguments) -> object:
        embeds = self.model.get_input_embeddings()(self.prompt.input_ids)
        is_image = (self.prompt.roles == IMAGE_ROLE)[..., None]
        embeds = embeds.masked_scatter(is_image, self.prompt.image_features)
        return self.model(inputs_embeds=embeds, attention_mask=self.prompt.attention_mask, **arguments)

    @torch.no_grad()
    def prefill(self) -> torch.Tensor:
        """As :meth:`OursRunner.prefill`."""
        output = self._forward(use_cache=True, logits_to_keep=1)
        self.cache = read_cache(output)
        return output.logits

    @torch.no_grad()
    def decode(self) -> torch.Tensor:
        """As :meth:`OursRunner.decode`."""
        for _ in range(NUM_DECODE_STEPS):
            output = self.model(input_ids=self.prompt.next_ids, use_cache=True, **as_keyword(self.cache))
        self.cache.crop(-NUM_DECODE_STEPS)
        return output.logits

    def training(self) -> torch.Tensor:
        """As :meth:`OursRunner.training`."""
        self.model.zero_grad(set_to_none=True)
        loss = self._forward(labels=self.prompt.labels, use_cache=False).loss
        loss.backward()
        return loss.detach()


def build_runner(variant: str, sizes: Sizes, batch: int, device: torch.device):
    """Build one variant alone, as the memory measurement needs it."""
    model = build_model(sizes, "encoder" if variant == ENCODER else "perceiver", device)
    prompt = build_prompt(sizes, batch, device)
    runner_class = {OURS: OursRunner, ENCODER: OursRunner, RELEASE: ReleaseRunner, BACKBONE: BackboneRunner}[variant]
    return runner_class(model, prompt)


def build_runners(sizes: Sizes, batch: int, device: torch.device) -> dict[str, object]:
    """Build all variants over the same weights and inputs, those that are compared side by side."""
    model, prompt = build_model(sizes, "perceiver", device), build_prompt(sizes, batch, device)
    torch.manual_seed(0)
    encoder = Compressor(CompressorConfig("encoder", sizes.hidden_size)).to(device, sizes.dtype)
    return {
        RELEASE: ReleaseRunner(model, prompt),
        OURS: OursRunner(model, prompt),
        BACKBONE: BackboneRunner(model, prompt),
        ENCODER: OursRunner(model, prompt, encoder),
    }


def largest_difference(runners: dict[str, object], phase: str) -> float:
    """Largest difference between (a) and (b): prompt logits, decoded logits or training loss."""
    ours, release = (getattr(runners[name], phase)() for name in (OURS, RELEASE))
    return float((ours - release).abs().max())
