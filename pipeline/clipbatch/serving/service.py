"""One process that keeps a model loaded and answers over a spool, HTTP, or both, until a signal ends it.

A signal (SIGTERM, SIGINT) is a wanted end: the service takes nothing more, answers the requests in hand, leaves the job
in work in `working/` for the next start, and ends with exit code 0.

On a CPU, images are decoded in a process of their own (`decoding`), so an image that crashes a decoder costs its own
row and nothing else. On a GPU they are decoded here. If a decoder ends this process, whoever started it starts it again
(systemd's Restart=, a container's policy). Requests in hand are then lost, which their clients notice; worker processes
that may die (`jobs`) do the spool's job again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection

from clipbatch.config import Settings
from clipbatch.errors import ClipbatchError, InputError, InterruptedRunError
from clipbatch.serving import Classifier, jobs
from clipbatch.serving.connections import listen
from clipbatch.serving.http import Api, Server
from clipbatch.serving.limits import Access, Limits, reserve_descriptors
from clipbatch.serving.metrics import Metrics
from clipbatch.serving.planning import PlanProcess
from clipbatch.serving.spool import Spool
from clipbatch.workers import signals

_POLL_S = 0.2


def serve(
    settings: Settings,
    *,
    spool: str | None,
    http: str | None,
    limits: Limits,
    say: Callable[[str], None],
    only_own_files: bool = False,
    allow_hosts: Collection[str] = (),
    token_file: str | None = None,
    no_token: bool = False,
) -> None:
    """Serve until a signal comes. spool: a folder. http: HOST:PORT. say: told when all is ready, and where. The others
    are as in `spool.Spool` and `limits.Access`.

    Raises: InputError where something is refused; BusyError where another process serves the spool; InterruptedRunError
    if a signal comes before the model is loaded.
    """
    if spool is None and http is None:
        raise InputError("nothing to serve: name a SPOOL folder, --http HOST:PORT, or both")
    if spool is None and only_own_files:
        raise InputError("--only-own-files is for a SPOOL folder: name one, or leave it out")
    if http is None and (allow_hosts or token_file or no_token):
        raise InputError(
            "--allow-host, --token-file and --no-token are for --http HOST:PORT: add that, or leave them out"
        )
    begun = time.perf_counter()
    with contextlib.ExitStack() as stack:
        folder = None
        if spool is not None:
            folder = Spool(spool, root=settings.source.root, only_own_files=only_own_files, say=say)
            stack.enter_context(folder.locked())
        listener, access = None, Access()
        if http is not None:
            reserve_descriptors(limits.connections)
            listener = stack.enter_context(listen(http))
            access = Access.of(http, listener, allow=allow_hosts, token_file=token_file, no_token=no_token)
        planner = None if folder is None else stack.enter_context(PlanProcess())
        classifier = stack.enter_context(Classifier.of(settings, decode_apart=True))
        signals.check()  # an import may have dropped the exception of a signal
        metrics = Metrics()
        server = None if listener is None else Server(Api(classifier, metrics, limits, access), listener)
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
            if folder is not None and planner is not None:
                jobs.work(folder, classifier, metrics, planner, alive)
            while True:
                alive()
                time.sleep(_POLL_S)


__all__ = ["Limits", "serve"]
