"""What every model's Serve application is deployed with; the ASGI application inside is the endpoint's own."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from seekray_serve import uvicorn_cycle
from seekray_serve.auth import Asgi, guarded
from seekray_serve.options import DRAIN_S, Limits, autoscaling, check_options
from seekray_serve.options import limits as limits_of
from seekray_serve.predict.inference_service import InferenceService
from seekray_serve.versions import ModelApplication, Versions, checked

if TYPE_CHECKING:
    from ray.serve import Application as ServeApplication

    from seekray_serve.following import Follower

# A fraction, so that training and serving share a laptop; it limits scheduling, not speed.
DEFAULT_CPUS = 0.1


def deployed(args: Mapping[str, Any], load: Callable[..., ModelApplication]) -> ServeApplication:
    """The Serve application of one model. `load(bundle, limits, name=, version=)` runs in each replica.

    args: `name`, `version`, `bundle` (a folder that every replica can read), and optionally `follow` (the alias that the
    version came from, and the registry: `following.follow_arguments`), `modules` (a folder with the module of the user's own
    family), `auth` (whose keys are asked for, `auth.guarded`), `num_cpus`, `num_gpus`, `num_replicas`,
    `autoscaling` {min, max, target}, and the fields of `Limits`.
    """
    from ray import serve

    options = dict(args)
    name, version, bundle = options.pop("name"), options.pop("version", None), options.pop("bundle")
    modules, follow, auth = (options.pop(name, None) for name in ("modules", "follow", "auth"))
    check_options(options)
    limits: Limits = limits_of(options)
    num_cpus = options.get("num_cpus", DEFAULT_CPUS)

    class Replica(InferenceService):
        """A loaded model and its ASGI application, which gRPC's calls are answered by too."""

        def __init__(self) -> None:
            import torch

            uvicorn_cycle.install()
            if modules:
                sys.path.append(modules)
            # More threads than the share that was asked for would only take turns.
            torch.set_num_threads(max(1, int(num_cpus)))

            def loaded(folder: str, number: str | None) -> ModelApplication:
                return load(folder, limits, name=name, version=number)

            from seekray_serve import board

            replica = serve.get_replica_context().replica_id.unique_id
            follower = None
            if follow:
                follower, again = followed(name, replica, follow, loaded)
                application = follower.first(version, bundle, again=again)
            else:
                application = checked(loaded(bundle, version))
            self.application = Versions(application, follower, replica=replica, exporter=board.Exporter(name, replica))

        def __serve_build_asgi_app__(self) -> Asgi:
            return guarded(self.application, auth)

    deployment: dict[str, Any] = {
        "name": "model",
        "ray_actor_options": {"num_cpus": num_cpus, "num_gpus": options.get("num_gpus", 0)},
        # The application's own queue answers 429 in the house's form; Serve's gate is open.
        "max_ongoing_requests": 100_000,
        "max_queued_requests": -1,
        # A new version is up before the old one leaves.
        "max_surge_percent": 100,
        "graceful_shutdown_wait_loop_s": 0.2,
        "graceful_shutdown_timeout_s": DRAIN_S,
        "health_check_period_s": 5,
    }
    if scaling := options.get("autoscaling"):
        deployment["autoscaling_config"] = autoscaling(scaling)
    else:
        deployment["num_replicas"] = options.get("num_replicas") or 1
    return serve.deployment(**deployment)(serve.ingress()(Replica)).bind()


def followed(
    name: str, replica: str, follow: Mapping[str, Any], load: Callable[[str, str], ModelApplication]
) -> tuple[Follower, bool]:
    """What follows an alias in this replica and tells the board of it, and whether another replica did so before."""
    from seekray_serve import board
    from seekray_serve.following import Follower, ask

    again = board.get(name, "followed") is not None
    board.put(name, "followed", {})
    return Follower(name, follow, load, lambda: ask(follow), lambda state: board.put(name, replica, state)), again
