"""Work off a spool: each job becomes a run directory, with the very bytes that `clipbatch run` would leave there.

A new job is labelled in this process, with the model that is loaded. A job that an earlier service left in work may be
what ended that service; so it is labelled as `clipbatch run` does it, by worker processes that may die, with the
images that kill quarantined. It then costs a process's start, and never this one's life.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from clipbatch.config import Settings
from clipbatch.config.auto import device_of
from clipbatch.errors import ClipbatchError, InterruptedRunError
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import plan as planner
from clipbatch.runs import report, run
from clipbatch.serving import Classifier
from clipbatch.serving.http import Metrics
from clipbatch.serving.spool import Spool
from clipbatch.stages.journal import Journal
from clipbatch.stages.pipeline import ShardPipeline, Task, execute
from clipbatch.workers import signals
from clipbatch.workers.ranks import Rank
from clipbatch.workers.worker import WorkDone

MAX_DEATHS = 10
"""Ends of services over a job after which it is given up."""
_POLL_S = 0.005


def work(spool: Spool, classifier: Classifier, metrics: Metrics, alive: Callable[[], None]) -> None:
    """Work off `spool`, which is locked, for ever. alive: called all the time; ends this by what it raises.

    Raises: InterruptedRunError when a signal asks for an end: the job in work stays in `working/`, for the next start.
    """
    worker = _JobWorker(spool, classifier, metrics)
    for name in spool.interrupted():
        worker.resume(name)
    while True:
        for name in spool.waiting():
            alive()
            if (taken := spool.take(name)) is not None:
                worker.label(taken, suspect=False)
        alive()
        time.sleep(_POLL_S)


class _JobWorker:
    """Does one job after the other."""

    def __init__(self, spool: Spool, classifier: Classifier, metrics: Metrics) -> None:
        self._spool, self._classifier, self._metrics = spool, classifier, metrics

    def resume(self, name: str) -> None:
        """A job that was in work when a service ended."""
        if (deaths := self._spool.count_death(name)) > MAX_DEATHS:
            error = f"it was in work when the service ended, {deaths} times: look at its images, and drop it again"
            self._spool.finish(name, {"job": name, "error": error, "exit_code": ClipbatchError.exit_code}, failed=True)
            return
        try:
            self.label(name, suspect=True)
        except InterruptedRunError:
            self._spool.forget_deaths(name)  # this end was wanted
            raise

    def label(self, name: str, *, suspect: bool) -> None:
        """Label a job's images, and answer it. suspect: in worker processes, which may die."""
        begun = time.perf_counter()
        place = str(self._spool.working / name)
        settings = self._classifier.settings.replace(inputs=(place,), limit=None, max_bad=None)
        out = self._spool.runs / name
        answer: dict[str, Any] = {"job": name, "out": str(out)}
        try:
            if suspect:
                made = run.run(settings.replace(rank=0, world_size=1), out, quiet=True)
            else:
                made = self._here(settings, out, begun)
        except InterruptedRunError:
            raise
        except Exception as error:
            exit_code = error.exit_code if isinstance(error, ClipbatchError) else ClipbatchError.exit_code
            text = str(error) if isinstance(error, ClipbatchError) else "".join(traceback.format_exception(error))
            answer |= {"error": text, "exit_code": exit_code}
        else:
            self._count(made["status"])
            answer |= {name: made[name] for name in ("rows", "status", "duplicates", "fingerprint")}
        answer["seconds"] = round(time.perf_counter() - begun, 3)
        failed = "error" in answer
        self._spool.finish(name, answer, failed=failed)
        self._metrics.jobs.labels("failed" if failed else "done").inc()
        self._metrics.job_seconds.observe(answer["seconds"])

    def _count(self, status: dict[str, int]) -> None:
        for name, count in status.items():
            self._metrics.images.labels(name).inc(count)

    def _here(self, settings: Settings, out: Path, begun: float) -> report.Report:
        """What `runs.run` does, by the loaded model; returns the report."""
        plan, run_dir = planner.plan(settings, out), RunDir(out)
        run_dir.make_parts()
        journal = Journal()
        try:
            loaded = self._classifier.labeller.model
            pipeline = ShardPipeline(
                run_dir,
                plan.fingerprint,
                device_of(settings),
                settings.runtime(),
                journal,
                model=loaded if plan.pixels == settings.decode.pixels else None,  # else begun by an older version
            )
            finished, done = run_dir.done(plan), WorkDone()
            tasks = (Task(shard=shard) for shard in range(plan.shards) if shard not in finished)
            for _ in execute(pipeline, tasks, on_part=lambda part: done.counts.update({part.shard: part.counts})):
                signals.check()
            done.stages.append(pipeline.report())
        finally:
            journal.close()
        report.check_nothing_vanished(run_dir, plan, range(plan.shards))
        return report.make(run_dir, plan, done, time.perf_counter() - begun, Rank(), list(range(plan.shards)))
