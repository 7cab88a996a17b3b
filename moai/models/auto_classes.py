"""Registration of a model that answers with transformers' Auto classes."""

from __future__ import annotations

__all__ = ["register_model"]


def register_model(config_class: type, body: type, whole: type) -> None:
    """Register a model's body and the whole, which continues texts about images.

    Args:
        config_class: Their configuration.
        body: Without a head.
        whole: With its language modelling head.
    """
    # Only now: taking an Auto class imports all of our models, which take this function.
    from transformers import AutoModel, AutoModelForImageTextToText, AutoModelForMultimodalLM
    from transformers.models.auto import modeling_auto

    AutoModel.register(config_class, body, exist_ok=True)
    for auto_class in (AutoModelForImageTextToText, AutoModelForMultimodalLM):
        auto_class.register(config_class, whole, exist_ok=True)
    # Pipelines find a registered class through the auto mapping; `transformers serve` looks for its name in these plain
    # tables only (in the first since 5.23, in the second since 5.24). The Trainer does so in the third: only of models
    # in it does it know that a label is the next token, which its label smoothing must shift by one. No built-in model
    # has one of our names.
    for kind in ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "CAUSAL_LM"):
        names = getattr(modeling_auto, f"MODEL_FOR_{kind}_MAPPING_NAMES")
        names.setdefault(config_class.model_type, whole.__name__)
