"""Where workers run: on this machine (`local`), or on a Ray cluster (`ray_engine`)."""

from __future__ import annotations

from clipbatch.config import Settings
from clipbatch.engine.base import Engine, Job, Killable
from clipbatch.ranks import Rank

__all__ = ["Engine", "Job", "Killable", "engine"]


def engine(settings: Settings, rank: Rank) -> Engine:
    """The engine that `settings` name; to be closed. rank: of this process among those that share the run.

    Raises: InputError where it cannot be had, or devices contradict one another.
    """
    if settings.launch.engine == "ray":
        from clipbatch.engine.ray_engine import RayEngine

        return RayEngine(settings)
    from clipbatch.engine.local import LocalEngine

    return LocalEngine(settings, rank)
