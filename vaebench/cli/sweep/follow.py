"""Submit the jobs of a sweep to a queue, follow each job to its end, and print a line at each change.

Two sources say how a job is. Its record says what it did, but a killed process writes none. The queue knows which
processes exist, but not what they did, and it may be late or not answer. So a job is settled by a final record, or when
the queue has ended it and no process holds the lock of its run.
"""

import itertools
import re
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from vaebench.cli.failure import message
from vaebench.cli.sweep.job import SweepJob, SweepTask
from vaebench.cli.sweep.plan import PlannedJob
from vaebench.cli.sweep.queues import Queue, QueueState
from vaebench.cli.sweep.records import FINAL, JobRecord, Records, SubmittedJob, skip_reason, sweeps_beside
from vaebench.cli.sweep.table import JobRow, distinct
from vaebench.config.schema import SweepSettings
from vaebench.errors import RunFailed, UserError
from vaebench.files import regular
from vaebench.progress import clock
from vaebench.records import RunFolder
from vaebench.records.stored import read_json
from vaebench.records.text import counted
from vaebench.typed import printable

__all__ = ["Follower", "collapsed"]

POLL = 1.0  # seconds between two looks at the records
FIRST_LOOK = 1.0  # seconds from a submission to the first look at the queue
SLOWEST = 60.0  # seconds between two looks at a queue that does not answer
SOON = 3.0  # seconds between two looks while jobs start, so that their lines have the time left
GRACE = 10.0  # seconds after a job's end in which its record may appear on this machine (NFS caches names)
ELSEWHERE = 5.0  # seconds between two looks at runs that other processes train
_TAIL_BYTES, _TAIL_LINES = 4096, 5
_MOST_SHOWN = 50  # running jobs whose progress is read for the table: more than a terminal shows
_GONE = QueueState("gone from the queue", ended=True)


@dataclass
class _Sent:
    """A job in the queue."""

    id: str
    log: Path | None
    records: Records
    """Those of the sweep that submitted it."""
    worker: int
    record: JobRecord | None = None
    """As last read, if it is not final."""
    since: float | None = None
    """When it was written, seconds since 1970."""
    state: QueueState | None = None
    """The queue's last answer."""
    ended: float | None = None
    """When the queue was first seen to have ended it."""
    said: set[str] = field(default_factory=set)
    """The lines that were printed about it."""

    @property
    def began(self) -> bool:
        return self.record is not None or (self.state is not None and self.state.started)


@dataclass
class _Entry:
    job: PlannedJob
    number: int
    settings: str
    """Its overrides that not all jobs share."""
    key: str
    run: RunFolder
    sent: _Sent | None = None

    @property
    def status(self) -> str:
        return self.job.record.status


class Follower:
    """Follows the jobs of one sweep in one queue."""

    def __init__(
        self,
        queue: Queue,
        jobs: Sequence[PlannedJob],
        task: SweepJob,
        settings: SweepSettings,
        *,
        batch: int | None,
        signalled: Callable[[], int | None],
        changed: Callable[[], None],
    ) -> None:
        """Prepare to follow ``jobs``.

        Args:
            queue: runs the jobs.
            jobs: their records are updated.
            task: what the jobs have in common.
            settings: when jobs start.
            batch: jobs that may be in the queue at once; None: any number.
            signalled: returns the signal that has asked the sweep to stop, or None.
            changed: called after records of ``jobs`` have changed.
        """
        self.queue, self.task, self.settings = queue, task, settings
        self.jobs = jobs
        self.records = Records(task.folder)
        self.limit = min(batch or len(jobs), queue.at_once or len(jobs))
        words = distinct([job.typed for job in jobs]) if len(jobs) != 1 else [[]]
        numbered = enumerate(zip(jobs, words, strict=True), start=1)
        self.entries = [
            _Entry(job, n, " ".join(own), job.key, job.run) for n, (job, own) in numbered if job.config is not None
        ]
        self._by_key = {entry.key: entry for entry in self.entries}
        self._name = f"{type(queue).__name__} {queue.name}".strip()
        self._signalled, self._changed = signalled, changed
        self._known: set[str] = set()
        """Jobs that this sweep has submitted or adopted, or that have ended."""
        self._versions: dict[Path, dict[str, tuple[int, int]]] = {}
        self._lists: dict[Path, tuple[tuple[int, int], list[SubmittedJob]]] = {}
        self._silent = self._halted = self._stopping = self._submitted = self._waiting = False
        self._interval = FIRST_LOOK
        self._last_look = self._next_look = self._next_elsewhere = 0.0

    def run(self) -> None:
        """Return when every job is settled, or is left to the queue.

        Raises:
            Busy: another process works in the folder of this sweep.
            UserError: the queue refuses the first submission.
            RunFailed: the queue cannot be reached for the first submission.
        """
        with self.records.attended():
            try:
                self._look_here(self.entries)
                while self._work():
                    self._wait(POLL)
            finally:
                self.queue.close()

    def rows(self, progress: Callable[[PlannedJob], tuple[str, float | None]] = lambda job: ("", None)) -> list[JobRow]:
        """Return the rows of the table as known now.

        ``progress`` returns how far a running job is, in words, and the seconds that it has left.
        """
        in_queue = {entry.number: entry.sent for entry in self.entries if entry.sent is not None}
        rows: list[JobRow] = []
        running = 0
        for number, job in enumerate(self.jobs, start=1):
            sent, record, detail, left = in_queue.get(number), job.record, "", None
            if sent is not None and record.status == "running":
                running += 1
                seconds = None if sent.since is None else time.time() - sent.since
                record = replace(record, seconds=seconds)
                far, left = progress(job) if running <= _MOST_SHOWN else ("", None)
                detail = ", ".join(filter(None, [far, record.host, _left(sent.state)]))
            elif sent is not None:
                detail = " ".join(filter(None, [sent.id, _words(sent.state) if sent.state is not None else ""]))
            rows.append(JobRow(number, job.typed, record, detail, left))
        return rows

    # One round --------------------------------------------------------------------------------------------------

    def _work(self) -> bool:
        """Do what is due; return whether anything is left to wait for."""
        before = [entry.job.record for entry in self.entries]
        if self._signalled():
            if self._stop():
                return False
        elif self.records.stopped:
            self._halt()
        elif time.monotonic() >= self._next_look or not self._silent:
            self._submit()
        self._read_records()
        if self._in_queue() and time.monotonic() >= self._next_look and not self.settings.submit_only:
            self._ask()
        self._conclude()
        if [entry.job.record for entry in self.entries] != before:
            self._changed()
        if self.settings.submit_only:
            self._say_submitted_only()
            return False
        if self._in_queue():
            return True
        if self.records.stopped:
            return False
        # A busy job may have become free, or be that of another sweep in the queue.
        self._look_here([entry for entry in self.entries if entry.status == "busy"])
        if not self._silent:
            self._adopt()
        if self._in_queue() or any(entry.status == "waiting" for entry in self.entries):
            return True
        return self.settings.wait and self._waits_for_others()

    def _waits_for_others(self) -> bool:
        """Return whether other processes train runs of this sweep; print which, once."""
        busy = [entry for entry in self.entries if entry.status == "busy"]
        if busy and not self._waiting:
            self._waiting = True
            self._print(f"waiting for {_numbers(busy)}: {busy[0].job.record.error}")
        return bool(busy)

    def _in_queue(self) -> list[_Entry]:
        return [entry for entry in self.entries if entry.sent is not None]

    def _wait(self, seconds: float) -> None:
        """Wait, but not after a signal that has not been answered."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and (self._stopping or not self._signalled()):
            time.sleep(min(0.1, left))

    # Jobs that can be submitted ---------------------------------------------------------------------------------

    def _look_here(self, entries: Iterable[_Entry]) -> None:
        """Record for jobs outside the queue whether they can start."""
        for entry in entries:
            if entry.sent is None and entry.job.open:
                assert entry.job.config is not None
                record = skip_reason(entry.run, entry.job.config) or JobRecord("waiting")
                if record.status == "skipped" and entry.status != "waiting":
                    self._say(entry, f"finished elsewhere: {_result(record)}")
                if record.status == "failed" and self.settings.fail_fast:
                    self.records.stop()
                entry.job.record = record

    def _submit(self) -> None:
        """Submit the jobs that no process trains, as many as the queue may hold."""
        due = time.monotonic() >= self._next_elsewhere
        if due:
            self._next_elsewhere = time.monotonic() + ELSEWHERE
            self._look_here([entry for entry in self.entries if entry.status == "busy"])
        room = self.limit - len(self._in_queue())
        free = any(entry.sent is None and entry.status == "waiting" for entry in self.entries)
        if room <= 0 or not (due or free) or not self._adopt():
            return
        chosen: list[_Entry] = []
        for entry in self.entries:
            if entry.sent is None and entry.status == "waiting" and len(chosen) < room:
                self._look_here([entry])
                if entry.status == "waiting":
                    chosen.append(entry)
        if chosen and not self.records.stopped:
            self._send(chosen)

    def _send(self, entries: list[_Entry]) -> None:
        used = {entry.sent.worker for entry in self._in_queue() if entry.sent is not None}
        workers = list(itertools.islice((n for n in itertools.count() if n not in used), len(entries)))
        for entry in entries:
            self.records.forget(entry.key)
        try:
            answers = self.queue.submit([self._task(*pair) for pair in zip(entries, workers, strict=True)])
        except (UserError, RunFailed) as error:
            first = not self._in_queue() and (isinstance(error, UserError) or not self._submitted)
            if first or self.settings.submit_only:
                raise
            if isinstance(error, RunFailed):
                self._not_answered(error)
                return
            for entry in entries:
                self._settle(entry, JobRecord("failed", error=message(error)))
            return
        self._submitted = True
        self._answered()
        self._interval, self._next_look = FIRST_LOOK, time.monotonic() + FIRST_LOOK
        for entry, worker, answer in zip(entries, workers, answers, strict=True):
            entry.sent = _Sent(answer.id, answer.log, self.records, worker)
            self._known.add(answer.id)
            self._update(entry)
        if self.queue.lasting:
            self.records.add_submitted(
                SubmittedJob(entry.key, answer.id, self._name, str(answer.log) if answer.log else None)
                for entry, answer in zip(entries, answers, strict=True)
            )
        self._print(f"submitted {_numbers(entries)} as {collapsed([answer.id for answer in answers])}")
        if logs := _common_folder([answer.log for answer in answers if answer.log]):
            self._print(f"logs: {logs}")

    def _task(self, entry: _Entry, worker: int) -> SweepTask:
        assert entry.job.config is not None
        number = f"job {entry.number} of {len(self.jobs)}"
        return SweepTask.of(self.task, entry.job.config, entry.job.overrides, number, worker)

    # Jobs of earlier sweeps -------------------------------------------------------------------------------------

    def _adopt(self) -> bool:
        """Follow the jobs that other sweeps have in the queue; return whether it answered."""
        if not self.queue.lasting:
            return True
        wanted = {e.key: e for e in self.entries if e.sent is None and e.job.open}
        found = [
            (wanted[line.key], line, Records(folder))
            for folder in (sweeps_beside(self.records.folder) if wanted else [])
            for line in self._listed(folder)
            if line.key in wanted and line.queue == self._name and line.id not in self._known
        ]
        if not found:
            return True
        states = self._look([line.id for _, line, _ in found])
        if states is None:
            return False
        # A job that runs, before one that waits.
        found.sort(key=lambda each: not (each[1].id in states and states[each[1].id].started))
        adopted: list[_Entry] = []
        for entry, line, records in found:
            state = states.get(line.id, _GONE)
            # A job of a stopped sweep does not train unless it began before.
            idle = records.stopped and not state.started and records.read(entry.key) is None
            if state.ended or idle:
                self._known.add(line.id)
            elif entry.sent is None:
                self._known.add(line.id)
                log = Path(line.log) if line.log else None
                entry.sent = _Sent(line.id, log, records, worker=0, state=state)
                adopted.append(entry)
        if adopted:
            ids = collapsed([entry.sent.id for entry in adopted if entry.sent is not None])
            self._print(f"already in the queue: {_numbers(adopted)} as {ids}")
        for entry in adopted:
            self._update(entry)
            self._take_record(entry)
        return True

    def _listed(self, folder: Path) -> list[SubmittedJob]:
        """Return the jobs that the sweep in ``folder`` has submitted; the file is read again only after a change."""
        try:
            stat = (folder / "submitted.jsonl").lstat()
        except OSError:
            return []
        version = stat.st_size, stat.st_mtime_ns
        if folder not in self._lists or self._lists[folder][0] != version:
            self._lists[folder] = version, list(Records(folder).submitted())
        return self._lists[folder][1]

    # What the records and the queue say -------------------------------------------------------------------------

    def _read_records(self) -> None:
        for folder in {entry.sent.records.folder for entry in self._in_queue() if entry.sent is not None}:
            for key in Records(folder).changed(self._versions.setdefault(folder, {})):
                entry = self._by_key.get(key)
                if entry is not None and entry.sent is not None and entry.sent.records.folder == folder:
                    self._take_record(entry)

    def _take_record(self, entry: _Entry) -> None:
        """Read the record of a job in the queue. A record that cannot be read now may be readable later."""
        assert entry.sent is not None
        path = entry.sent.records.path(entry.key)
        try:
            record, written = read_json(path, JobRecord, "Delete it."), path.stat().st_mtime
        except (OSError, UserError):
            return
        if record.status in FINAL:
            self._settle(entry, record)
        elif record.status == "busy":  # another process was faster: wait for the run itself
            entry.sent, entry.job.record = None, record
        else:
            entry.sent.record, entry.sent.since = record, written
            if record.status == "running" and _place(record) not in entry.sent.said:
                self._next_look = min(self._next_look, self._last_look + SOON)
            self._update(entry)

    def _ask(self) -> None:
        """Ask the queue for the jobs in it."""
        entries = self._in_queue()
        states = self._look([entry.sent.id for entry in entries if entry.sent is not None])
        if states is not None:
            for entry in entries:
                assert entry.sent is not None
                entry.sent.state = states.get(entry.sent.id, _GONE)
                if not entry.sent.state.ended:
                    entry.sent.ended = None
                elif entry.sent.ended is None:
                    entry.sent.ended = time.monotonic()
                self._update(entry)
        self._say_states(entries)

    def _look(self, ids: Sequence[str]) -> Mapping[str, QueueState] | None:
        """Return the queue's answer; None if there is none now."""
        self._last_look = time.monotonic()
        try:
            states = self.queue.look(ids)
        except RunFailed as error:
            if self.settings.submit_only:
                raise
            self._not_answered(error)
            return None
        self._answered()
        self._next_look = time.monotonic() + self._interval
        self._interval = min(self._interval * 1.3, self.queue.slowest_look)
        return states

    def _not_answered(self, error: RunFailed) -> None:
        if not self._silent:
            self._print(f"the queue does not answer, asking again until it does: {message(error)}")
        self._silent = True
        self._interval = min(self._interval * 2, SLOWEST)
        self._next_look = time.monotonic() + self._interval

    def _answered(self) -> None:
        if self._silent:
            self._print("the queue answers again")
            self._silent, self._interval = False, FIRST_LOOK

    def _update(self, entry: _Entry) -> None:
        """Set the record of a job in the queue, for the table."""
        sent = entry.sent
        assert sent is not None
        at_work = sent.record is not None and sent.record.status == "running"
        # The queue has put a job back whose record is from its last start.
        put_back = sent.state is not None and not sent.state.started
        record = sent.record if sent.record is not None and at_work and not put_back else JobRecord("queued")
        entry.job.record = self._with_job(entry, record)

    def _with_job(self, entry: _Entry, record: JobRecord) -> JobRecord:
        """Return the record with what the queue says about the job."""
        if entry.sent is None:
            return record
        log = str(entry.sent.log) if entry.sent.log else None
        return replace(record, id=entry.sent.id, log=log, state=entry.sent.state.word if entry.sent.state else None)

    # The end of a job -------------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        """Settle the jobs that the queue has ended without a final record."""
        for entry in self._in_queue():
            if entry.sent is not None and entry.sent.ended is not None:
                self._take_record(entry)
            sent = entry.sent
            if sent is not None and sent.ended is not None and time.monotonic() - sent.ended >= GRACE:
                self._conclude_one(entry, sent)

    def _conclude_one(self, entry: _Entry, sent: _Sent) -> None:
        assert entry.job.config is not None
        state = sent.state or _GONE
        found = skip_reason(entry.run, entry.job.config)
        if found is not None and found.status == "skipped":
            self._settle(entry, replace(found, status="finished"))
        elif found is not None and found.status == "busy":
            self._say_once(entry, f"{_words(state)}, but its process still works ({found.error}): waiting for it")
            sent.ended = time.monotonic()
        elif self.records.stopped and sent.record is None:
            self._settle(entry, JobRecord("not started"))
        elif self.records.stopped or state.word.startswith("CANCELLED"):
            error = f"{_words(state)}; run the same sweep again to resume it"
            self._settle(entry, JobRecord("interrupted", error=error))
        else:
            entry.job.deaths += not state.word.startswith("PREEMPTED")
            if entry.job.deaths < 2:
                saved = sent.record is not None and sent.record.status == "interrupted"
                how = "ended with its state saved" if saved else "ended without a result"
                self._say(entry, f"{how} ({_words(state)}): submitting it again{_log_lines(sent.log)}")
                entry.sent, entry.job.record = None, JobRecord("waiting")
            else:
                self._settle(entry, JobRecord("failed", error=f"ended twice without a result: {_words(state)}"))

    def _settle(self, entry: _Entry, record: JobRecord) -> None:
        """Set the record of a job that the queue no longer runs."""
        entry.job.record = self._with_job(entry, record)
        if record.status in ("finished", "resumed", "skipped"):
            self._say(entry, f"{record.status}{_took(record)}: {_result(record)}")
        else:
            tail = _log_lines(entry.sent.log) if entry.sent is not None and record.status == "failed" else ""
            self._say(entry, f"{record.status}{f': {record.error}' if record.error else ''}{tail}")
        entry.sent = None
        if record.status == "failed" and self.settings.fail_fast:
            self.records.stop()

    # Stopping ---------------------------------------------------------------------------------------------------

    def _halt(self) -> None:
        """After a failure with ``sweep.fail_fast``: cancel the jobs that have not begun."""
        if not self._halted:
            self._halted = True
            self._ask_now()
            self._cancel([entry for entry in self._in_queue() if entry.sent is not None and not entry.sent.began])

    def _stop(self) -> bool:
        """After a signal: cancel the jobs; return whether the sweep leaves the rest to the queue.

        A terminal may close without anybody's intent, so that SIGHUP leaves every job to a lasting queue.
        """
        if self._stopping:
            return False
        self._stopping = self._halted = True
        leaves_all = self.queue.lasting and self._signalled() == getattr(signal, "SIGHUP", 0)
        if not leaves_all:
            self.records.stop()
        if not self.queue.lasting:
            if entries := self._in_queue():
                self._print(
                    "stopping: waiting for the running jobs to save their state (press Ctrl-C again to exit now)"
                )
                self._cancel(entries)
            return False
        self._ask_now()
        waiting = [entry for entry in self._in_queue() if entry.sent is not None and not entry.sent.began]
        for entry in self._cancel([] if leaves_all else waiting):
            self._settle(entry, JobRecord("not started"))
        if left := self._in_queue():
            self._print(f"left in the queue: {_numbers(left)}; run the same sweep again to collect results")
            command = self.queue.cancel_command([entry.sent.id for entry in left if entry.sent is not None])
            if command:
                self._print(f"to cancel: {command}")
        return True

    def _ask_now(self) -> None:
        self._read_records()
        if self._in_queue():
            self._ask()

    def _cancel(self, entries: list[_Entry]) -> list[_Entry]:
        """Cancel jobs, but not those for which the process that submitted them waits; return the cancelled ones."""
        own = [
            entry
            for entry in entries
            if entry.sent is not None
            and (entry.sent.records.folder == self.records.folder or not entry.sent.records.is_attended)
        ]
        ids = [entry.sent.id for entry in own if entry.sent is not None]
        if not ids:
            return []
        try:
            self.queue.cancel(ids)
        except RunFailed as error:
            command = self.queue.cancel_command(ids)
            self._print(
                f"cannot cancel {_numbers(own)}: {message(error)}{f'; to cancel: {command}' if command else ''}"
            )
            return []
        self._print(f"cancelled {_numbers(own)}")
        return own

    # The screen -------------------------------------------------------------------------------------------------

    def _print(self, text: str) -> None:
        print(printable(f"{time.strftime('%H:%M:%S')} {text}"), flush=True)

    def _say(self, entry: _Entry, text: str) -> None:
        settings = f" ({entry.settings})" if entry.settings else ""
        self._print(f"job {entry.number} of {len(self.jobs)}{settings}: {text}")

    def _say_once(self, entry: _Entry, text: str) -> None:
        if entry.sent is not None and text not in entry.sent.said:
            entry.sent.said.add(text)
            self._say(entry, text)

    def _say_states(self, entries: Iterable[_Entry]) -> None:
        """Print which jobs wait, for which reason, and which have begun since the last answer."""
        waiting: dict[str, list[_Entry]] = {}
        begun: list[tuple[_Entry, str]] = []
        for entry in entries:
            sent = entry.sent
            if sent is None or sent.ended is not None:
                continue
            restarted = any(line.startswith("on ") for line in sent.said)
            if sent.state is not None and not sent.state.started:
                words = _words(sent.state)
                if restarted:
                    sent.said = {words}
                    begun.append((entry, f"requeued: {words}"))
                elif words not in sent.said:
                    sent.said.add(words)
                    waiting.setdefault(words, []).append(entry)
            elif sent.record is not None and sent.record.status == "running" and _place(sent.record) not in sent.said:
                sent.said.add(_place(sent.record))
                where = ", ".join(filter(None, [sent.record.host, _left(sent.state)]))
                begun.append((entry, f"{'requeued, ' if restarted else ''}running on {where}"))
        for words, group in waiting.items():
            self._print(f"queued: {_numbers(group)}, {words}")
        for entry, text in begun:
            self._say(entry, text)

    def _say_submitted_only(self) -> None:
        left = [entry for entry in self.entries if entry.sent is None and entry.status == "waiting"]
        if left:
            self._print(f"{_numbers(left)} not submitted: the queue may hold {self.limit} at once")
        self._print("run the same command again to collect results and to submit what is left")


def _place(record: JobRecord) -> str:
    """Return a text that differs for each process of a job."""
    return f"on {record.host}, process {record.pid}"


def _words(state: QueueState) -> str:
    return f"{state.word} ({state.reason})" if state.reason else state.word


def _left(state: QueueState | None) -> str:
    return "" if state is None or state.seconds_left is None else f"{clock(state.seconds_left)} left"


def _took(record: JobRecord) -> str:
    return "" if record.seconds is None else f" in {clock(record.seconds)}"


def _result(record: JobRecord) -> str:
    return "; ".join(record.results) or "no result"


def _numbers(entries: Sequence[_Entry]) -> str:
    """Return, for example, ``job 7`` or ``3 jobs (1-2, 7)``."""
    if len(entries) == 1:
        return f"job {entries[0].number}"
    return f"{counted(len(entries), 'job')} ({_ranges(sorted(entry.number for entry in entries))})"


def _ranges(numbers: Sequence[int]) -> str:
    """Return sorted numbers as, for example, ``1-3, 7``."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def collapsed(ids: Sequence[str]) -> str:
    """Return ids in one line; those of an array, ``12_0`` and ``12_1``, as ``12_[0-1]``."""
    arrays: dict[str, list[int]] = {}
    texts: list[str] = []
    for each in ids:
        match = re.fullmatch(r"(.+)_(\d{1,9})", each)
        if match is None:
            texts.append(each)
        else:
            arrays.setdefault(match[1], []).append(int(match[2]))
    texts += [
        f"{array}_{members[0]}" if len(members) == 1 else f"{array}_[{_ranges(sorted(members))}]"
        for array, members in arrays.items()
    ]
    return ", ".join(texts[:20]) + (f" and {len(texts) - 20} more" if len(texts) > 20 else "")


def _common_folder(logs: Sequence[Path]) -> Path | None:
    """Return the folder that holds all logs, or the one log."""
    folders = [log.parents for log in logs]
    if len(logs) == 1:
        return logs[0]
    return next((folder for folder in folders[0] if all(folder in each for each in folders)), None) if logs else None


def _log_lines(log: Path | None) -> str:
    """Return the path of a log and its last lines, to follow a message."""
    if log is None:
        return ""
    try:
        with open(log, "rb", opener=regular) as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return f"\n    log: {log}"
    # Of a progress bar, the last state.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n") if line.strip()]
    return "".join(f"\n    {line}" for line in [f"log: {log}", *lines[-_TAIL_LINES:]])
