"""NanoDet, a detector of 80 kinds of things for processors without an accelerator, as a transformers model.

Importing this package imports torch and transformers; `verbalizers` itself does not import it until it is used.
"""

from transformers import AutoConfig, AutoModelForObjectDetection

from verbalizers.nanodet.configuration_nanodet import NanoDetConfig
from verbalizers.nanodet.modeling_nanodet import NanoDetForObjectDetection, NanoDetOutput

AutoConfig.register(NanoDetConfig.model_type, NanoDetConfig, exist_ok=True)
AutoModelForObjectDetection.register(NanoDetConfig, NanoDetForObjectDetection, exist_ok=True)

__all__ = ["NanoDetConfig", "NanoDetForObjectDetection", "NanoDetOutput"]
