"""One process that keeps a model loaded and answers over a spool, HTTP, or both, until a signal ends it.

A signal (SIGTERM, SIGINT) is a wanted end: no more is taken, requests in hand are answered, a job in work stays in
`working/` for the next start, and the process ends with exit code 0.

The model lives in this process. Should a decoder end it, whoever started it starts it again (systemd's Restart=, a
container's policy): requests in hand are then lost, which their clients notice, and the spool's job in work is done
again by worker processes that may die (`jobs`).

A model that stays loaded, for jobs dropped into a folder and for requests over HTTP.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from clipbatch.config import Settings
from clipbatch.errors import ClipbatchError, InputError, InterruptedRunError
from clipbatch.serving import Classifier, jobs
from clipbatch.serving.http import Api, Limits, Metrics, Server, listen
from clipbatch.serving.spool import Spool
from clipbatch.workers import signals

_POLL_S = 0.2


def serve(
    settings: Settings, *, spool: str | None, http: str | None, limits: Limits, say: Callable[[str], None]
) -> None:
    """Serve until a signal comes. spool: a folder. http: HOST:PORT. say: told when all is ready, and where.

    Raises: InputError where something is refused; BusyError where another process serves the spool.
    """
    if spool is None and http is None:
        raise InputError("nothing to serve: name a SPOOL folder, --http HOST:PORT, or both")
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = None if spool is None else Spool(spool)
        if folder is not None:
            stack.enter_context(folder.locked())
        listener = None if http is None else stack.enter_context(listen(http))
        classifier = stack.enter_context(Classifier.of(settings))
        metrics = Metrics()
        server = None if listener is None else Server(Api(classifier, metrics, limits), listener)
        places = [f"{folder.incoming}/"] if folder else []
        if server is not None:
            server.start()
            stack.callback(server.stop)
            places.append(server.url)
        model = classifier.settings.model.model
        say(f"serving {model} at {' and '.join(places)}, ready after {time.perf_counter() - begun:.1f} s")

        def alive() -> None:
            signals.check()
            if server is not None and not server.alive:
                raise ClipbatchError("the HTTP server has ended")

        with contextlib.suppress(InterruptedRunError):
            if folder is not None:
                jobs.work(folder, classifier, metrics, alive)
            while True:
                alive()
                time.sleep(_POLL_S)


__all__ = ["Limits", "serve"]
