"""PSGTR, the panoptic scene graph transformer, without mmdet: a transformers model that loads, runs and
trains.

Importing this package imports torch and transformers; `verbalizers` itself does not import it until it is
used.
"""

from transformers import AutoConfig, AutoImageProcessor, AutoModel

from verbalizers.psgtr.configuration_psgtr import PSGTRConfig
from verbalizers.psgtr.image_processing_psgtr import PSGTRImageProcessor, SceneGraph
from verbalizers.psgtr.modeling_psgtr import PSGTRForSceneGraph, PSGTRHead, PSGTROutput

AutoConfig.register(PSGTRConfig.model_type, PSGTRConfig, exist_ok=True)
AutoModel.register(PSGTRConfig, PSGTRForSceneGraph, exist_ok=True)
AutoImageProcessor.register(PSGTRConfig, image_processor_classes={"pil": PSGTRImageProcessor}, exist_ok=True)

__all__ = [
    "PSGTRConfig",
    "PSGTRForSceneGraph",
    "PSGTRHead",
    "PSGTRImageProcessor",
    "PSGTROutput",
    "SceneGraph",
]
