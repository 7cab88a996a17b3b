"""TCL's objective: the model, its momentum copy, two queues of what other batches held, and three losses."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from moai.models.tcl.modeling_tcl import TCLModel, patch_pooling

from .losses import contrast, local_information, masked_word_loss, soft_targets

__all__ = ["CONTRASTS", "TCLFeatures", "TCLLosses", "TCLObjective"]

#: The six contrastive parts: across modalities, within them, and with local vectors.
CONTRASTS = ("i2t", "t2i", "i2i", "t2t", "image_local", "text_local")
_TEMPERATURES = (0.001, 0.5)


@dataclass(frozen=True, eq=False)
class TCLFeatures:
    """What a batch of B captioned images is to model and momentum model.

    Attributes:
        image_states: ``(B, 1 + V, vision width)`` image tokens.
        text_states: ``(B, L, D)`` text tokens.
        image_features: ``(B, E)`` class vectors.
        text_features: Likewise.
        momentum_image_states: Image tokens of the momentum model, which sees the other view.
        momentum_image_features: ``(B, E)``.
        momentum_text_features: Likewise.
        image_locals: ``(B, n, E)`` averages of the momentum model's patches.
        text_locals: ``(B, L - 1, E)`` its text tokens, the class token left out.
        image_keys: ``(E, B + Q)``: its class vectors, then the queue.
        text_keys: Likewise.
    """

    image_states: torch.Tensor
    text_states: torch.Tensor
    image_features: torch.Tensor
    text_features: torch.Tensor
    momentum_image_states: torch.Tensor
    momentum_image_features: torch.Tensor
    momentum_text_features: torch.Tensor
    image_locals: torch.Tensor
    text_locals: torch.Tensor
    image_keys: torch.Tensor
    text_keys: torch.Tensor


@dataclass(frozen=True, eq=False)
class TCLLosses:
    """Losses of a batch, scalars.

    Attributes:
        contrasts: By name, see :data:`CONTRASTS`.
        matching: Whether image and text belong together.
        words: Masked words.
    """

    contrasts: dict[str, torch.Tensor]
    matching: torch.Tensor
    words: torch.Tensor

    @property
    def contrast(self) -> torch.Tensor:
        """Mean of the six parts."""
        return sum(self.contrasts.values()) / len(self.contrasts)

    @property
    def total(self) -> torch.Tensor:
        """What is learned from: all weights are 1."""
        return self.words + self.contrast + self.matching


class TCLObjective(nn.Module):
    """The losses, and what they need beside the model. A forward pass changes nothing of it: :meth:`advance` does.

    The original updates the momentum copy and puts features into the queues inside its forward pass. Here both happen
    after the optimizer step, which is the same: its first update copies equal weights, and its queues grow behind the
    loss. So a step may have any number of micro-batches, on any number of processes.

    Args:
        model: What is trained.
        queue_size: Q, features of each modality that are kept.
        momentum: Share that the momentum copy keeps of itself at every step.

    Attributes:
        model: As given.
        momentum_model: Its copy without matching head and temperature; it stays in training mode, as in the original,
            where dropout makes the second view of a text.
        image_queue: ``(E, Q)``, a buffer.
        text_queue: Likewise.
        queue_place: Where the next features go, an int64 scalar.
    """

    def __init__(self, model: TCLModel, queue_size: int, momentum: float) -> None:
        super().__init__()
        self.model, self.momentum = model, momentum
        self.momentum_model = deepcopy(model)
        del self.momentum_model.matching_head, self.momentum_model.temperature
        self.momentum_model.requires_grad_(False)
        width = model.config.projection_dim
        # Of length 1 and random, as in the original: the first batches compare with noise.
        self.register_buffer("image_queue", F.normalize(torch.randn(width, queue_size), dim=0))
        self.register_buffer("text_queue", F.normalize(torch.randn(width, queue_size), dim=0))
        self.register_buffer("queue_place", torch.zeros((), dtype=torch.int64))

    def encode(
        self,
        pixel_values: torch.Tensor,
        other_pixel_values: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
    ) -> TCLFeatures:
        """Features of both models.

        Args:
            pixel_values: ``(B, 3, H, W)``, the view of the model.
            other_pixel_values: Likewise, the view of the momentum model.
            input_ids: ``(B, L)``.
            attention_mask: ``(B, L)``.
        """
        model, copy = self.model, self.momentum_model
        image_states = model.encode_images(pixel_values)
        text_states = model.text_model.encode(input_ids, attention_mask)
        with torch.no_grad():
            other_states = copy.encode_images(other_pixel_values)
            image_vectors = copy.project_images(other_states)
            text_vectors = copy.project_texts(copy.text_model.encode(input_ids, attention_mask))
        return TCLFeatures(
            image_states,
            text_states,
            model.project_images(image_states[:, 0]),
            model.project_texts(text_states[:, 0]),
            other_states,
            image_vectors[:, 0],
            text_vectors[:, 0],
            patch_pooling(image_vectors[:, 1:]),
            text_vectors[:, 1:],
            torch.cat([image_vectors[:, 0].T, self.image_queue.to(image_vectors.dtype)], dim=1),
            torch.cat([text_vectors[:, 0].T, self.text_queue.to(text_vectors.dtype)], dim=1),
        )

    def similarities(self, features: TCLFeatures) -> dict[str, torch.Tensor]:
        """``(B, B + Q)`` of ``i2t``, ``t2i``, ``i2i``, ``t2t``, divided by the temperature."""
        image, text = features.image_features, features.text_features
        pairs = {"i2t": (image, "text"), "t2i": (text, "image"), "i2i": (image, "image"), "t2t": (text, "text")}
        keys = {"image": features.image_keys, "text": features.text_keys}
        return {name: vectors @ keys[other] / self.model.temperature for name, (vectors, other) in pairs.items()}

    def targets(self, features: TCLFeatures, alpha: float) -> dict[str, torch.Tensor]:
        """``(B, B + Q)`` distributions of ``i2t`` and ``t2i``; those within a modality are the diagonal."""
        temperature = self.model.temperature.detach()
        image, text = features.momentum_image_features, features.momentum_text_features
        return {
            "i2t": soft_targets(image @ features.text_keys / temperature, alpha),
            "t2i": soft_targets(text @ features.image_keys / temperature, alpha),
        }

    def contrasts(
        self, features: TCLFeatures, similarities: dict[str, torch.Tensor], attention_mask: torch.Tensor, alpha: float
    ) -> dict[str, torch.Tensor]:
        """The six contrastive parts, see :data:`CONTRASTS`."""
        hard = soft_targets(similarities["i2i"], 0.0)
        targets = {"i2i": hard, "t2t": hard, **self.targets(features, alpha)}
        parts = {name: contrast(similarities[name], targets[name]) for name in CONTRASTS[:4]}
        heat = self.model.temperature
        parts["image_local"] = local_information(features.image_features, features.image_locals, heat)
        parts["text_local"] = local_information(
            features.text_features, features.text_locals, heat, attention_mask[:, 1:]
        )
        return parts

    @staticmethod
    @torch.no_grad()
    def negative_weights(similarities: torch.Tensor) -> torch.Tensor:
        """``(B, B)``: how likely another sample of the batch is drawn as the wrong partner; the own one never."""
        batch = len(similarities)
        return similarities[:, :batch].float().softmax(dim=1).fill_diagonal_(0)

    def draw_negatives(
        self, similarities: dict[str, torch.Tensor], generator: torch.Generator
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A wrong image for each text, then a wrong text for each image; ``(B,)`` places in the batch each.

        Args:
            similarities: From :meth:`similarities`; B is at least 2.
            generator: Random numbers, on the device of the features.
        """
        drawn = []
        for name in ("t2i", "i2t"):
            weights = self.negative_weights(similarities[name])
            # The original stops where softmax left nothing beside the diagonal; here all others are alike then.
            weights = (weights + 1e-12).fill_diagonal_(0)
            drawn.append(torch.multinomial(weights, 1, generator=generator)[:, 0])
        return drawn[0], drawn[1]

    def match(
        self, features: TCLFeatures, attention_mask: torch.Tensor, negatives: tuple[torch.Tensor, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``(3 * B, 2)``, labels ``(3 * B,)``: right pairs, texts with wrong images, images with wrong texts.

        Args:
            features: Of the batch.
            attention_mask: ``(B, L)``.
            negatives: From :meth:`draw_negatives`.
        """
        images, texts = negatives
        text_states = torch.cat([features.text_states, features.text_states, features.text_states[texts]])
        mask = torch.cat([attention_mask, attention_mask, attention_mask[texts]])
        image_states = torch.cat([features.image_states, features.image_states[images], features.image_states])
        labels = torch.zeros(len(mask), dtype=torch.int64, device=mask.device)
        labels[: len(attention_mask)] = 1
        return self.model.match(text_states, mask, image_states), labels

    def word_logits(
        self, features: TCLFeatures, hidden_ids: torch.Tensor, attention_mask: torch.Tensor, is_chosen: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits ``(M, vocabulary)`` of model and momentum model at chosen positions of a text with hidden words.

        Args:
            features: Of the batch.
            hidden_ids: ``(B, L)`` with hidden words.
            attention_mask: ``(B, L)``.
            is_chosen: ``(B, L)`` bool with M true.
        """

        def read(model: TCLModel, image_states: torch.Tensor) -> torch.Tensor:
            text = model.text_model
            states = text.fuse(text.encode(hidden_ids, attention_mask), attention_mask, image_states)
            return text.predict_words(states[is_chosen])

        with torch.no_grad():
            teacher = read(self.momentum_model, features.momentum_image_states)
        return read(self.model, features.image_states), teacher

    def forward(
        self,
        features: TCLFeatures,
        attention_mask: torch.Tensor,
        hidden_ids: torch.Tensor,
        word_labels: torch.Tensor,
        alpha: float,
        generator: torch.Generator | None = None,
        negatives: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> TCLLosses:
        """All losses of a batch.

        Args:
            features: From :meth:`encode`.
            attention_mask: ``(B, L)``.
            hidden_ids: ``(B, L)``, see :func:`.losses.mask_words`.
            word_labels: ``(B, L)``, -100 = not hidden.
            alpha: Share of the momentum model in the targets.
            generator: Draws the wrong partners.
            negatives: Wrong partners, instead of drawing them.
        """
        similarities = self.similarities(features)
        parts = self.contrasts(features, similarities, attention_mask, alpha)
        if negatives is None:
            negatives = self.draw_negatives(similarities, generator)
        logits, labels = self.match(features, attention_mask, negatives)
        is_hidden = word_labels != -100
        words, teacher = self.word_logits(features, hidden_ids, attention_mask, is_hidden)
        return TCLLosses(
            contrasts=parts,
            matching=F.cross_entropy(logits.float(), labels),
            words=masked_word_loss(words, teacher, word_labels[is_hidden], alpha),
        )

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Keep the temperature in the original's bounds, 0.001 to 0.5."""
        self.model.temperature.clamp_(*_TEMPERATURES)

    @torch.no_grad()
    def update_momentum(self) -> None:
        """Move the momentum copy a step towards the model."""
        online = dict(self.model.named_parameters())
        for name, value in self.momentum_model.named_parameters():
            value.mul_(self.momentum).add_(online[name], alpha=1 - self.momentum)

    @torch.no_grad()
    def enqueue(self, image_features: torch.Tensor, text_features: torch.Tensor) -> None:
        """Put a whole step's features into the queues in place of the oldest.

        Args:
            image_features: ``(N, E)`` of the momentum model; the queue's size is a multiple of N.
            text_features: Likewise.
        """
        count, size = len(image_features), self.image_queue.shape[1]
        assert size % count == 0, (size, count)
        place = int(self.queue_place)
        self.image_queue[:, place : place + count] = image_features.T.to(self.image_queue.dtype)
        self.text_queue[:, place : place + count] = text_features.T.to(self.text_queue.dtype)
        self.queue_place.fill_((place + count) % size)
