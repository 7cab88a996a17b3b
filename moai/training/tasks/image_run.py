"""Settings that the tasks on images share."""

from __future__ import annotations

from moai.data.image_settings import ImageDataSettings
from moai.settings import settings

from ..train_settings import RunSettings

__all__ = ["ImageRunSettings"]


@settings(kw_only=True)
class ImageRunSettings(RunSettings):
    """Settings of a run that learns from images; see :class:`moai.training.train_settings.RunSettings` for the rest.

    Attributes:
        data: Images, with captions where the task reads them.
        validation: The same for images that are not learned from; their loss is logged and drawn.
    """

    data: ImageDataSettings
    validation: ImageDataSettings | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimization.learning_rates:
            raise ValueError("`optimization.learning_rates` are not known by this task. Leave them out.")
