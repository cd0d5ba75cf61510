"""Work off a spool: each job becomes a run directory, with the very bytes that `clipbatch run` would leave there.

A new job is planned in a process that may die (`planning`) and labelled in this one, with the model that is loaded. A
job that an earlier service left in work may be what ended that service; worker processes that may die label it, as
`clipbatch run` does, and quarantine the images that kill. That costs a process's start, and never this one's life.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable
from pathlib import Path

from clipbatch.config import Settings
from clipbatch.config.auto import device_of
from clipbatch.config.nesting import JsonObject
from clipbatch.errors import ClipbatchError, InterruptedRunError
from clipbatch.rundir.layout import RunDir
from clipbatch.runs import report, run
from clipbatch.serving import Classifier
from clipbatch.serving.metrics import Metrics
from clipbatch.serving.planning import PlanProcess
from clipbatch.serving.spool import Spool
from clipbatch.stages.journal import Journal
from clipbatch.stages.pipeline import ShardPipeline, Task, execute
from clipbatch.workers import signals
from clipbatch.workers.ranks import Rank
from clipbatch.workers.worker import WorkDone

# Ends of services over a job after which it is given up.
MAX_DEATHS = 10
_POLL_S = 0.005
# Until an answer that could not be written is tried again.
_RETRY_S = 5.0


def work(
    spool: Spool, classifier: Classifier, metrics: Metrics, planner: PlanProcess, alive: Callable[[], None]
) -> None:
    """Work off `spool`, which is locked, for ever. alive: called all the time; ends this by what it raises.

    Raises: InterruptedRunError when a signal asks for an end: the job in work stays in `working/`, for the next start.
    """
    worker = _JobWorker(spool, classifier, metrics, planner)
    spool.recover()
    for name in spool.interrupted():
        worker.resume(name)
    while True:
        for name in spool.waiting():
            alive()
            if (taken := spool.take(name)) is not None:
                worker.label(taken, suspect=False, dropped=name)
        worker.finish_again()
        alive()
        time.sleep(_POLL_S)


class _JobWorker:
    """Does one job after the other."""

    def __init__(self, spool: Spool, classifier: Classifier, metrics: Metrics, planner: PlanProcess) -> None:
        self._spool, self._classifier, self._metrics, self._planner = spool, classifier, metrics, planner
        # Answers that could not be written, or whose job could not be moved, by job.
        self._unfinished: dict[str, JsonObject] = {}
        self._tried = 0.0

    def resume(self, name: str) -> None:
        """A job that was in work when a service ended."""
        if (deaths := self._spool.count_death(name)) > MAX_DEATHS:
            error = f"it was in work when the service ended, {deaths} times: look at its images, and drop it again"
            self._finish(name, {"job": name, "error": error, "exit_code": ClipbatchError.exit_code})
            return
        try:
            self.label(name, suspect=True)
        except InterruptedRunError:
            self._spool.forget_deaths(name)  # this end was wanted
            raise

    def label(self, name: str, *, suspect: bool, dropped: str | None = None) -> None:
        """Label a job's images, and answer it. suspect: in worker processes, which may die. dropped: its name in `in/`,
        where it is known."""
        begun = time.perf_counter()
        place = str(self._spool.working / name)
        settings = self._classifier.settings.replace(inputs=(place,), limit=None, sample=None, seed=None, max_bad=None)
        out = self._spool.runs / name
        answer: JsonObject = {"job": name, "out": str(out)}
        if dropped not in (None, name):
            answer["dropped_as"] = dropped
        try:
            self._spool.check(name)
            self._planner.plan(settings, out)
            self._spool.check(name)  # its owner may have put links there meanwhile
            if suspect:
                # A job whose images are all bad is answered with their rows.
                apart = settings.replace(inputs=(), rank=0, world_size=1, max_bad="100%")
                made = run.run(apart, out, quiet=True)
            else:
                made = self._by_the_loaded_model(settings, out, begun)
        except InterruptedRunError:
            raise
        except Exception as error:
            exit_code = error.exit_code if isinstance(error, ClipbatchError) else ClipbatchError.exit_code
            text = str(error) if isinstance(error, ClipbatchError) else "".join(traceback.format_exception(error))
            answer |= {"error": text, "exit_code": exit_code}
        else:
            self._metrics.labelled(made["status"])
            answer |= {key: made[key] for key in ("rows", "status", "duplicates", "fingerprint")}
        answer["seconds"] = round(time.perf_counter() - begun, 3)
        self._finish(name, answer)
        self._metrics.jobs.labels("failed" if "error" in answer else "done").inc()
        self._metrics.job_seconds.observe(answer["seconds"])

    def finish_again(self) -> None:
        """Try once more, now and then, what `finish` could not do."""
        if self._unfinished and time.monotonic() - self._tried > _RETRY_S:
            for name, answer in list(self._unfinished.items()):
                self._finish(name, answer)

    def _finish(self, name: str, answer: JsonObject) -> None:
        self._tried = time.monotonic()
        try:
            self._spool.finish(name, answer, failed="error" in answer)
        except (OSError, ClipbatchError) as error:  # a full disk, a folder that its owner has closed
            if name not in self._unfinished:
                self._spool.say(f"cannot finish the job {name!r}: {error}; trying again every {_RETRY_S:g} s")
            self._unfinished[name] = answer
        else:
            self._unfinished.pop(name, None)

    def _by_the_loaded_model(self, settings: Settings, out: Path, begun: float) -> report.Report:
        """What `runs.run` does, by the loaded model; returns the report."""
        run_dir = RunDir(out)
        plan = run_dir.plan()
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
