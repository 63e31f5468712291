"""What is missing is run, several processes at a time; what is there is not run again."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import sha256
from pathlib import Path
from typing import Any

from benchmarks.first_results.studies import BATCH, METHODS, Study
from benchmarks.first_results.training import ROOT, Job, run
from equipoise.datasets.manifest import FILE
from equipoise.datasets.prepare import prepare
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.files import read_json, write_json

Say = Callable[[str], None]
Train = Callable[[Job, str], dict[str, Any]]
#: {method: {seed: record}}
Found = dict[str, dict[int, dict[str, Any]]]
#: How long each call of the command has taken so far, beside the records.
CALLS = "calls.json"


class Schedule:
    """The runs of some studies, their records under `runs`, their data under `data`; `session` names this call.

    `train` makes the record of a job, where need be in a process of its own.
    """

    def __init__(self, data: Path, runs: Path, seeds: int, jobs: int, say: Say = print, train: Train = run) -> None:
        self.data, self.runs, self.wanted, self.jobs, self.say, self.train = data, runs, seeds, jobs, say, train
        self.session = f"{time.time():.0f}"
        self._began = time.perf_counter()

    def prepared(self, studies: Iterable[Study]) -> tuple[list[Study], dict[str, str]]:
        """Prepare what is installed: (its studies, {name: why not} of the others)."""
        there, absent = [], {}
        for study in studies:
            try:
                for seed in study.seeds(self.wanted):
                    folder = self.folder(study, seed)
                    if not (folder / FILE).exists():
                        prepare(study.name, folder, **study.prepare_options(seed))
            except EquipoiseError as error:
                if "not installed here" not in str(error):
                    raise
                absent[study.name] = str(error)
                self.say(str(error))
            else:
                there.append(study)
        return there, absent

    def folder(self, study: Study, seed: int) -> Path:
        """Where the data of a seed lie: another folder for other options or another source."""
        code = "".join(path.read_text() for path in sorted((ROOT / "datasets").rglob("*.py")))
        said = json.dumps([study.name, study.prepare_options(seed), code], sort_keys=True)
        return self.data / f"{study.name}-{seed}-{sha256(said.encode()).hexdigest()[:8]}"

    def run(self, studies: Sequence[Study]) -> dict[str, tuple[Found, Found]]:
        """{study: (its tries, its runs)}: first the tries of joint, then every method, then the checks."""
        tries = self.ensure([job for study in studies for job in self._tries(study)])
        choices = {study.name: study.tries[best(tries[study.name])] for study in studies}

        def job(study: Study, method: str, seed: int, steps: int | None = None) -> Job:
            config = study.config(method, seed, choices[study.name], str(self.folder(study, seed)), steps)
            return Job.of(study.name, method, seed, config, self.runs)

        runs = self.ensure([job(s, m, seed) for s in studies for seed in s.seeds(self.wanted) for m in METHODS])
        checks = []
        for study in studies:
            for seed in study.seeds(self.wanted):
                short = max(1, round(runs[study.name]["sample"][seed]["whole"] / BATCH))
                for check in study.checks(choices[study.name]):
                    checks.append(job(study, check, seed, short if check == "fewer_rows" else None))
        checked = self.ensure(checks)
        return {s.name: (tries[s.name], {**runs[s.name], **checked[s.name]}) for s in studies}

    def seconds(self, used: Iterable[Mapping[str, Any]]) -> dict[str, float]:
        """{call: seconds} of the calls of the command that made the records in use, stopped ones included."""
        calls: dict[str, float] = read_json(self.runs / CALLS) or {}
        return {name: calls[name] for name in sorted({record["session"] for record in used}) if name in calls}

    def _note_time(self) -> None:
        calls: dict[str, float] = read_json(self.runs / CALLS) or {}
        write_json(self.runs / CALLS, {**calls, self.session: time.perf_counter() - self._began})

    def _tries(self, study: Study) -> list[Job]:
        seed = study.seeds(self.wanted)[0]
        data = str(self.folder(study, seed))
        return [
            Job.of(study.name, f"try{i}", seed, study.config("joint", seed, choice, data), self.runs, test=False)
            for i, choice in enumerate(study.tries)
        ]

    def ensure(self, jobs: Sequence[Job]) -> dict[str, Found]:
        """The records of all jobs, made where they are not there."""
        missing = [job for job in jobs if job.record() is None]
        for done, job in enumerate(self._made(missing), start=1):
            self._note_time()
            self.say(f"{done}/{len(missing)} {job.study} {job.method} seed {job.seed}")
        out: dict[str, Found] = {}
        for job in jobs:
            record = job.record()
            assert record is not None, job.path
            out.setdefault(job.study, {}).setdefault(job.method, {})[job.seed] = record
        return out

    def _made(self, missing: Sequence[Job]) -> Iterator[Job]:
        """Make the records of these jobs, and yield each job when it is done."""
        if self.jobs == 1 or not missing:
            for job in missing:
                self.train(job, self.session)
                yield job
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(self.jobs, context, _end_with_parent) as pool:
            waiting = {pool.submit(self.train, job, self.session): job for job in missing}
            try:
                for future in as_completed(waiting):
                    try:
                        future.result()
                    except Exception as error:
                        error.add_note(
                            f"in the run {waiting[future].study} {waiting[future].method}, seed {waiting[future].seed}"
                        )
                        raise
                    yield waiting[future]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _end_with_parent() -> None:
    """In a worker process: a pool's workers outlive a parent that is killed, and would wait for ever."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def best(tries: Found) -> int:
    """The number of the try with the highest validation accuracy; of equals that with the lower loss, then the first."""
    firsts = [next(iter(seeds.values()))["best"] for seeds in tries.values()]
    return max(range(len(firsts)), key=lambda i: (firsts[i]["value"], -firsts[i]["loss"], -i))
