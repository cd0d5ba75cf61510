"""A process that plans runs and may die: `serving.planning` starts it.

    python -m clipbatch.runs.plan_main

Takes orders with the settings and the folder of a run, plans each, and answers `{}` or a `failure`. Manifests that
strangers wrote are parsed here, so that whatever they do to a parser ends this process alone.
"""

from __future__ import annotations

import signal

from clipbatch.config import from_flat
from clipbatch.runs.plan import plan
from clipbatch.workers.child import Parent, failure, serve


def main() -> None:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):  # the service gets them too, and closes the pipe
        signal.signal(signum, signal.SIG_IGN)
    serve(answer)


def answer(parent: Parent) -> None:
    """Plan what the parent orders until it closes the pipe."""
    parent.send({})
    for order in parent.messages():
        try:
            plan(from_flat(order["settings"]), order["out"])
        except Exception as error:
            parent.send(failure(error))
        else:
            parent.send({})


if __name__ == "__main__":
    main()
