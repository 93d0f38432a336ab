"""Extra `ray`: the same engine as a Ray Serve application behind Serve's gRPC ingress.

    start(RaySettings(...))    # or `serve run cloud.ray_app:build`, after a `serve start` with gRPC (docs/scaling.md)

Unary RPCs alone: Serve's ingress has no bidirectional streams, no TLS and no tokens, so put it behind something that
has (docs/scaling.md). Callers' deadlines do not reach replicas; Serve's request timeout holds in their place.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, gRPCOptions

from cloud.ray_replica import RaySettings, Replica

SERVICER = "thinwire.v1.inference_pb2_grpc.add_InferenceServiceServicer_to_server"
APPLICATION = "thinwire"


def application(settings: RaySettings):
    """The Serve application of `settings`, not yet deployed."""
    scaling = {"num_replicas": settings.min_replicas}
    if settings.max_replicas > settings.min_replicas:
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=settings.min_replicas,
                max_replicas=settings.max_replicas,
                target_ongoing_requests=settings.target_ongoing,
                upscale_delay_s=10,  # loading a model takes about that long
                downscale_delay_s=300,
            )
        }
    deployed = serve.deployment(
        Replica,
        name="Replica",
        max_ongoing_requests=settings.max_ongoing,
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        health_check_period_s=5,
        graceful_shutdown_timeout_s=20,
        **scaling,
    )
    return deployed.bind(asdict(settings))


def build(words: dict[str, Any]):
    """For `serve run cloud.ray_app:build min_replicas=2 gpus=1 adapters=none`. Raises `BadConfiguration`."""
    return application(RaySettings.of_words(words))


def start(settings: RaySettings) -> str:
    """Deploys on the Ray that is initialised, waits until it answers, returns "127.0.0.1:PORT" of this node's ingress.

    Stop with `serve.delete(APPLICATION)`, which lets calls finish; `serve.shutdown()` cuts them.
    """
    options = gRPCOptions(
        port=settings.port, grpc_servicer_functions=[SERVICER], request_timeout_s=settings.request_timeout_s
    )
    serve.start(grpc_options=options, http_options={"location": "EveryNode", "port": 0})
    serve.run(application(settings), name=APPLICATION, route_prefix="/thinwire")
    return f"127.0.0.1:{settings.port}"
