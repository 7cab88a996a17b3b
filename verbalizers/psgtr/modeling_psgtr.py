"""PSGTR: one DETR query = one triplet (subject, predicate, object), each with class, box and mask (arXiv
2207.11247).

    image -> backbone -> 1x1 projection -> DETR encoder -> DETR decoder -> per query: three classes, two
    boxes, two masks

The parts are transformers' DETR. Shapes: B images, Q queries, C object classes, P predicates, L decoder
layers, D hidden size; h, w = the coarsest feature map.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.models.detr.modeling_detr import (
    DetrConvEncoder,
    DetrDecoder,
    DetrEncoder,
    DetrMaskHeadSmallConv,
    DetrMHAttentionMap,
    DetrMLPPredictionHead,
    DetrPreTrainedModel,
    DetrSinePositionEmbedding,
)
from transformers.utils import ModelOutput

from verbalizers.psgtr.configuration_psgtr import PSGTRConfig
from verbalizers.psgtr.loss_psgtr import triplet_loss

__all__ = ["PSGTRForSceneGraph", "PSGTRHead", "PSGTROutput", "PSGTRPreTrainedModel"]


_QUERIES_AT_ONCE = 8


@dataclass
class PSGTROutput(ModelOutput):
    """Output of PSGTR.

    Attributes:
        loss: scalar, only with labels.
        loss_dict: the weighted terms that sum to `loss`; earlier decoder layers carry their index as a
            suffix.
        subject_logits: `(B, Q, C + 1)`, the last class = nothing.
        object_logits: `(B, Q, C + 1)`.
        relation_logits: `(B, Q, P + 1)`, column 0 = no relation.
        subject_boxes: `(B, Q, 4)` centre x, y, width, height in [0, 1].
        object_boxes: `(B, Q, 4)`.
        subject_masks: `(B, Q, H / 4, W / 4)` logits.
        object_masks: `(B, Q, H / 4, W / 4)` logits.
        auxiliary_outputs: per earlier decoder layer a dict of the five classes and boxes above, if asked for.
        mask_inputs: what `PSGTRHead.draw_masks` draws masks from, where they were left out.
    """

    loss: torch.Tensor | None = None
    loss_dict: dict[str, torch.Tensor] | None = None
    subject_logits: torch.Tensor | None = None
    object_logits: torch.Tensor | None = None
    relation_logits: torch.Tensor | None = None
    subject_boxes: torch.Tensor | None = None
    object_boxes: torch.Tensor | None = None
    subject_masks: torch.Tensor | None = None
    object_masks: torch.Tensor | None = None
    auxiliary_outputs: tuple[dict[str, torch.Tensor], ...] | None = None
    mask_inputs: tuple | None = None


class PSGTRPreTrainedModel(DetrPreTrainedModel):
    """Loading, saving and initialisation."""

    config_class = PSGTRConfig
    base_model_prefix = ""
    _no_split_modules = ["DetrConvEncoder", "DetrEncoderLayer", "DetrDecoderLayer"]
    _keys_to_ignore_on_load_unexpected = [r"num_batches_tracked"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As DETR's paper and OpenPSG: queries from N(0, 1), Xavier for linear layers.

        transformers draws both from N(0, 0.02): all queries then start alike, and a model trained from there was seen
        to keep saying one average triplet.
        """
        super()._init_weights(module)
        if isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=1.0)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)


class PSGTREncoder(PSGTRPreTrainedModel, DetrEncoder):
    """DETR's encoder with PSGTR's initialisation."""


class PSGTRDecoder(PSGTRPreTrainedModel, DetrDecoder):
    """DETR's decoder layers; the final norm is applied to a copy of every layer's output.

    transformers' own collection of intermediate outputs feeds the normed copy to the next layer, which
    neither DETR's paper nor the released PSGTR does.
    """

    def forward(
        self,
        query_positions: torch.Tensor,
        memory: torch.Tensor,
        memory_positions: torch.Tensor,
        memory_mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Decode from zeros.

        Args:
            query_positions: `(B, Q, D)`.
            memory: `(B, h * w, D)`, the encoder's output.
            memory_positions: `(B, h * w, D)`.
            memory_mask: bool `(B, h * w)`, True = image, False = padding; None = all image.

        Returns:
            `(L, B, Q, D)`, every layer's normed output.
        """
        hidden_states = torch.zeros_like(query_positions)
        attention_mask = create_bidirectional_mask(
            config=self.config,
            inputs_embeds=hidden_states,
            attention_mask=memory_mask,
            encoder_hidden_states=memory,
        )
        outputs = []
        for layer in self.layers:
            hidden_states = layer(
                hidden_states, None, memory_positions, query_positions, memory, encoder_attention_mask=attention_mask
            )
            outputs.append(self.layernorm(hidden_states))
        return torch.stack(outputs)


class PSGTRMaskHead(DetrMaskHeadSmallConv):
    """DETR's mask head; what does not depend on the query is computed once per image, not once per query.

    transformers' repeats the image's maps for every query: the first convolution sees 256 channels of the image beside
    8 of the query, and the adapters of the finer maps see nothing of the query at all.
    """

    def forward(
        self, features: torch.Tensor, attention_masks: torch.Tensor, fpn_features: list[torch.Tensor]
    ) -> torch.Tensor:
        """Masks `(B * Q, 1, H, W)`.

        Args:
            features: `(B, D, h, w)`.
            attention_masks: `(B, Q, heads, h, w)`.
            fpn_features: three maps `(B, channels, H, W)`, coarsest first.
        """
        num_queries = attention_masks.shape[1]
        convolution, width = self.conv1.conv, features.shape[1]
        # A convolution of joined channels is the sum of the parts' convolutions.
        shared = F.conv2d(features, convolution.weight[:, :width], convolution.bias, padding=1)
        own = F.conv2d(attention_masks.flatten(0, 1), convolution.weight[:, width:], padding=1)
        hidden_states = _add_to_queries(own, shared, num_queries)  # (B * Q, D + heads, h, w)
        hidden_states = self.conv2(self.conv1.activation(self.conv1.norm(hidden_states)))
        for stage, finer_map in zip(self.fpn_stages, fpn_features, strict=True):
            finer_map = stage.fpn_adapter(finer_map)  # (B, channels, H, W)
            hidden_states = F.interpolate(hidden_states, size=finer_map.shape[-2:], mode="nearest")
            hidden_states = stage.refine(_add_to_queries(hidden_states, finer_map, num_queries))
        return self.output_conv(hidden_states)


def _add_to_queries(maps: torch.Tensor, shared: torch.Tensor, num_queries: int) -> torch.Tensor:
    """Maps `(B * Q, ...)` plus what the queries of an image share `(B, ...)`."""
    return (maps.unflatten(0, (-1, num_queries)) + shared[:, None]).flatten(0, 1)


class PSGTRHead(PSGTRPreTrainedModel):
    """Encoder, decoder, classifiers, box and mask predictors: all but the backbone.

    Args:
        config: the configuration.
        feature_channels: channels of the backbone's four maps, finest first (strides 4, 8, 16, 32).
    """

    def __init__(self, config: PSGTRConfig, feature_channels: list[int]):
        super().__init__(config)
        hidden_size, num_heads = config.d_model, config.encoder_attention_heads
        self.position_embedding = DetrSinePositionEmbedding(hidden_size // 2, normalize=True)
        self.input_projection = nn.Conv2d(feature_channels[-1], hidden_size, kernel_size=1)
        self.query_position_embeddings = nn.Embedding(config.num_queries, hidden_size)
        self.encoder = PSGTREncoder(config)
        self.decoder = PSGTRDecoder(config)
        self.subject_classifier = nn.Linear(hidden_size, config.num_labels + 1)
        self.object_classifier = nn.Linear(hidden_size, config.num_labels + 1)
        self.relation_classifier = nn.Linear(hidden_size, config.num_relations + 1)
        self.subject_box_predictor = DetrMLPPredictionHead(hidden_size, hidden_size, 4, 3)
        self.object_box_predictor = DetrMLPPredictionHead(hidden_size, hidden_size, 4, 3)
        self.subject_attention_map = DetrMHAttentionMap(hidden_size, num_heads)
        self.object_attention_map = DetrMHAttentionMap(hidden_size, num_heads)
        mask_head = (hidden_size + num_heads, feature_channels[-2::-1], hidden_size, config.activation_function)
        self.subject_mask_head = PSGTRMaskHead(*mask_head)
        self.object_mask_head = PSGTRMaskHead(*mask_head)
        self.post_init()

    def forward(
        self,
        feature_maps: list[torch.Tensor],
        feature_mask: torch.Tensor | None = None,
        output_auxiliary: bool = False,
        output_masks: bool = True,
    ) -> PSGTROutput:
        """From the backbone's maps to triplets.

        Args:
            feature_maps: four maps `(B, channels, H / stride, W / stride)`, finest first.
            feature_mask: bool `(B, h, w)` at the coarsest map's size, True = image, False = padding.
            output_auxiliary: also give the earlier decoder layers' classes and boxes.
            output_masks: False leaves the masks for later: `draw_masks(*outputs.mask_inputs)`, of those queries that
                turn out to matter.
        """
        states, projected, memory_map = self.decode(feature_maps[-1], feature_mask)
        mask_inputs = (states[-1], projected, memory_map, feature_maps[:-1], feature_mask)
        masks = self.draw_masks(*mask_inputs) if output_masks else {"mask_inputs": mask_inputs}
        earlier = tuple(self.classify(layer) for layer in states[:-1]) if output_auxiliary else None
        return PSGTROutput(**self.classify(states[-1]), **masks, auxiliary_outputs=earlier)

    def decode(
        self, feature_map: torch.Tensor, feature_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The transformer: all that needs the coarsest map only.

        Args:
            feature_map: `(B, channels, h, w)`.
            feature_mask: bool `(B, h, w)`, True = image, False = padding; None = all image.

        Returns:
            Every decoder layer's normed states `(L, B, Q, D)`, the projected map `(B, D, h, w)` and the encoder's
            output `(B, D, h, w)`.
        """
        projected = self.input_projection(feature_map)  # (B, D, h, w)
        batch_size, _, height, width = projected.shape
        if feature_mask is None:
            feature_mask = torch.ones((batch_size, height, width), dtype=torch.bool, device=projected.device)
        positions = self.position_embedding(projected.shape, projected.device, projected.dtype, feature_mask)
        positions = positions.flatten(2).transpose(1, 2)  # (B, h * w, D)
        flat_mask = feature_mask.flatten(1)  # (B, h * w)
        memory = self.encoder(
            inputs_embeds=projected.flatten(2).transpose(1, 2),
            attention_mask=flat_mask,
            spatial_position_embeddings=positions,
        ).last_hidden_state  # (B, h * w, D)
        query_positions = self.query_position_embeddings.weight.expand(batch_size, -1, -1)  # (B, Q, D)
        states = self.decoder(query_positions, memory, positions, flat_mask)  # (L, B, Q, D)
        return states, projected, memory.transpose(1, 2).reshape(batch_size, -1, height, width)

    def draw_masks(
        self,
        states: torch.Tensor,
        projected: torch.Tensor,
        memory_map: torch.Tensor,
        finer_maps: list[torch.Tensor],
        feature_mask: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """`subject_masks` and `object_masks`, logits `(B, Q, H / 4, W / 4)`, of all or some queries.

        Args:
            states: `(B, Q, D)`, the last decoder layer's.
            projected: `(B, D, h, w)` from `decode`.
            memory_map: `(B, D, h, w)` from `decode`.
            finer_maps: the backbone's other three maps, finest first.
            feature_mask: as for `decode`.
        """
        padding = None
        if feature_mask is not None:
            lowest = torch.finfo(memory_map.dtype).min
            padding = torch.zeros_like(feature_mask, dtype=memory_map.dtype).masked_fill(~feature_mask, lowest)
            padding = padding[:, None, None]
        masks = {}
        for role in ("subject", "object"):
            attention_map = getattr(self, f"{role}_attention_map")(states, memory_map, padding)
            mask_head = getattr(self, f"{role}_mask_head")
            logits = mask_head(projected, attention_map, finer_maps[::-1])  # (B * Q, 1, H / 4, W / 4)
            masks[f"{role}_masks"] = logits.view(states.shape[0], -1, *logits.shape[-2:])
        return masks

    def classify(self, states: torch.Tensor) -> dict[str, torch.Tensor]:
        """Classes and boxes of one decoder layer's output `(B, Q, D)`."""
        return {
            "subject_logits": self.subject_classifier(states),
            "object_logits": self.object_classifier(states),
            "relation_logits": self.relation_classifier(states),
            "subject_boxes": self.subject_box_predictor(states).sigmoid(),
            "object_boxes": self.object_box_predictor(states).sigmoid(),
        }


class PSGTRForSceneGraph(PSGTRPreTrainedModel):
    """Backbone and head. Batch norms of the backbone are frozen, the first stages too (see num_frozen_stages)."""

    def __init__(self, config: PSGTRConfig):
        super().__init__(config)
        self.backbone = DetrConvEncoder(config)
        channels = list(self.backbone.intermediate_channel_sizes)
        if len(channels) != 4:
            raise ValueError(
                f"the backbone must give four feature maps (strides 4, 8, 16, 32), got {len(channels)}. Set "
                "backbone_config's out_features (transformers) or out_indices (timm) to four stages."
            )
        self._freeze_stages()
        self.head = PSGTRHead(config, channels)
        self.post_init()

    def _freeze_stages(self) -> None:
        """Own rule, because transformers' looks for `stage.1` in names that say `stages.1` and freezes everything."""
        frozen: list[str] = []
        if self.config.num_frozen_stages:
            frozen += ["embedder.", "conv1.", "bn1."]
        for stage in range(self.config.num_frozen_stages):
            frozen += [f"encoder.stages.{stage}.", f"layer{stage + 1}."]  # transformers' names, timm's names
        is_resnet = "resnet" in str(self.config.backbone_config.to_dict())
        for name, parameter in self.backbone.model.named_parameters():
            parameter.requires_grad_(not (is_resnet and name.startswith(tuple(frozen))))

    def forward(
        self,
        pixel_values: torch.Tensor,
        pixel_mask: torch.Tensor | None = None,
        labels: list[dict[str, torch.Tensor]] | None = None,
        output_auxiliary: bool = False,
        return_dict: bool | None = None,
        output_masks: bool = True,
    ) -> PSGTROutput | tuple:
        """Find triplets; with labels also the training loss.

        Args:
            pixel_values: `(B, 3, H, W)`, normalised.
            pixel_mask: `(B, H, W)`, 1 = image, 0 = padding.
            labels: per image a dict with `class_labels` int64 `(G,)`, `boxes` `(G, 4)` centre x, y, width,
                height in [0, 1], `masks` `(G, h, w)` (any resolution) and `relations` int64 `(T, 3)`: subject
                index, object index, predicate counted from 1.
            output_auxiliary: also give the earlier decoder layers' classes and boxes.
            return_dict: False gives a plain tuple.
            output_masks: False leaves them to `draw_masks`.
        """
        batch_size, _, height, width = pixel_values.shape
        if pixel_mask is None:
            pixel_mask = torch.ones((batch_size, height, width), device=pixel_values.device)
        features = self.backbone(pixel_values, pixel_mask)
        needs_auxiliary = output_auxiliary or (labels is not None and self.config.auxiliary_loss)
        outputs = self.head([feature for feature, _ in features], features[-1][1], needs_auxiliary, output_masks)
        if labels is not None:
            outputs.loss_dict = triplet_loss(outputs, labels, self.config)
            outputs.loss = torch.stack(list(outputs.loss_dict.values())).sum()
        return outputs.to_tuple() if return_dict is False else outputs

    def draw_masks(self, outputs: PSGTROutput, index: int, queries: torch.Tensor) -> dict[str, torch.Tensor]:
        """The masks of some queries of one image, from outputs without masks.

        Args:
            outputs: of `forward(..., output_masks=False)`.
            index: which image of the batch.
            queries: int64 `(n,)`.

        Returns:
            `subject_masks` and `object_masks`, logits `(n, H / 4, W / 4)`.
        """
        states, projected, memory_map, finer_maps, feature_mask = outputs.mask_inputs
        if not len(queries):
            empty = states.new_zeros(0, *finer_maps[0].shape[-2:])
            return {"subject_masks": empty, "object_masks": empty}
        one = slice(index, index + 1)
        rest = (projected[one], memory_map[one], [finer_map[one] for finer_map in finer_maps])
        feature_mask = None if feature_mask is None else feature_mask[one]
        # In chunks: a hundred queries' largest maps together are larger than any cache.
        drawn = [
            self.head.draw_masks(states[one][:, chunk], *rest, feature_mask)
            for chunk in queries.split(_QUERIES_AT_ONCE)
        ]
        return {name: torch.cat([masks[name][0] for masks in drawn]) for name in drawn[0]}
