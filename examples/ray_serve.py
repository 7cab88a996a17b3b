"""``moai serve`` on many machines: Ray Serve places replicas, each with a model, an engine and its limits.

    pip install "moai-vlm[serve]" "ray[serve]>=2.50"
    MOAI_MODEL=moai-nano MOAI_REPLICAS=2 serve run examples.ray_serve:application

Replicas of GPUs: set `ray_actor_options={"num_gpus": 1}`. Scenes are kept per replica.
"""

import os

from ray import serve

import moai
from moai.serving.app import build_app
from moai.serving.settings import ServingSettings

MODEL = os.environ.get("MOAI_MODEL", "moai-nano")


def build_replica():
    """The application of one replica, built where it runs."""
    return build_app(
        moai.Pipeline.from_pretrained(MODEL), ServingSettings(name="moai", api_key=os.environ.get("MOAI_API_KEY"))
    )


@serve.deployment(num_replicas=int(os.environ.get("MOAI_REPLICAS", "1")), max_ongoing_requests=64)
@serve.ingress(build_replica)
class Replica:
    """Answers what Ray's proxy hands on."""


application = Replica.bind()
