"""The same application on many machines: Ray Serve places replicas, each with a model, an engine and its limits.

    pip install "moai-vlm[serve]" "ray[serve]>=2.50"
    MOAI_MODEL=moai-nano MOAI_REPLICAS=2 serve run moai.serving.ray_serve:application

``MOAI_GPUS=1`` gives each replica a GPU; ``MOAI_API_KEY`` is what clients must send. Scenes are kept per replica.
"""

import os

from fastapi import FastAPI
from ray import serve

from ..pipeline.pipeline import Pipeline
from .app import build_app
from .settings import ServingSettings

__all__ = ["Replica", "application"]


def build_replica() -> FastAPI:
    """The application of one replica, built where it runs."""
    settings = ServingSettings(name="moai", api_key=os.environ.get("MOAI_API_KEY"))
    return build_app(Pipeline.from_pretrained(os.environ.get("MOAI_MODEL", "moai-nano")), settings)


@serve.deployment(
    num_replicas=int(os.environ.get("MOAI_REPLICAS", "1")),
    ray_actor_options={"num_gpus": float(os.environ.get("MOAI_GPUS", "0"))},
    max_ongoing_requests=64,
)
@serve.ingress(build_replica)
class Replica:
    """Answers what Ray's proxy hands on."""


application = Replica.bind()
