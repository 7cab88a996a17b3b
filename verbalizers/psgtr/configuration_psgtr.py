"""Configuration of PSGTR, the panoptic scene graph transformer (arXiv 2207.11247)."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import DetrConfig

from verbalizers.core.vocabularies import COCO_PANOPTIC_NAMES, PSG_PREDICATES

__all__ = ["PSGTRConfig"]


@strict
class PSGTRConfig(DetrConfig):
    """Configuration of PSGTR: DETR's fields, and those of scene graphs.

    Args:
        predicate_names: the P predicates; score column p + 1 is predicate p, column 0 means no relation. None
            = the 56 of PSG.
        id2label: the C object classes, things first. None = COCO panoptic's 133.
        num_thing_classes: classes from this index on are stuff: of one stuff class an image has one region
            only.
        relation_loss_coefficient: weight of the predicate's cross entropy (and of its matching cost).
        class_loss_coefficient: weight of the subject's and of the object's cross entropy (and matching cost).
        mask_loss_coefficient: weight of the masks' focal loss. OpenPSG configures 1 but leaves the term out
            of its sum: 0 trains exactly as it does.
        eos_coefficient: weight of "no relation" among the predicates.
        num_frozen_stages: how many stages of a ResNet backbone, the stem counted with the first, are not trained; 1 as
            usual for a pretrained one, 0 to train from scratch. Other backbones are trained whole.
        auxiliary_loss: train every decoder layer, not only the last.
    """

    model_type = "psgtr"

    predicate_names: list[str] | tuple[str, ...] | None = None
    num_thing_classes: int = 80
    relation_loss_coefficient: float | int = 2
    class_loss_coefficient: float | int = 1
    eos_coefficient: float | int = 0.02
    num_frozen_stages: int = 1
    attention_dropout: float | int = 0.1
    auxiliary_loss: bool = True

    def __post_init__(self, **kwargs):
        if self.predicate_names is None:
            self.predicate_names = PSG_PREDICATES
        self.predicate_names = list(self.predicate_names)
        if self.id2label is None and "num_labels" not in kwargs:
            self.id2label = dict(enumerate(COCO_PANOPTIC_NAMES))
            self.label2id = {name: index for index, name in enumerate(COCO_PANOPTIC_NAMES)}
        if self.backbone_config is None:
            # transformers' own ResNet-50: torchvision's architecture, no further package needed.
            stages = ["stage1", "stage2", "stage3", "stage4"]
            self.backbone_config = {"model_type": "resnet", "out_features": stages}
        super().__post_init__(**kwargs)
        if not self.predicate_names:
            raise ValueError("`predicate_names` must hold at least one predicate, got none. Leave it None for PSG's.")
        if self.d_model % self.encoder_attention_heads or (self.d_model + self.encoder_attention_heads) % 8:
            raise ValueError(
                "`d_model` must be divisible by `encoder_attention_heads` and their sum by 8 (group norm of the mask "
                f"heads), got {self.d_model} and {self.encoder_attention_heads}. The paper has 256 and 8."
            )

    @property
    def num_relations(self) -> int:
        """How many predicates there are, "no relation" not counted."""
        return len(self.predicate_names)
