"""`equipoise tune`: light trials, then whole runs, one study; then the winner against the default on fresh seeds."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from rich.console import Console
from rich.text import Text

from equipoise.datasets.manifest import Manifest
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import Config, pairs
from equipoise.pipelines.files import atomic, read_json, write_json
from equipoise.pipelines.interrupting import alone
from equipoise.pipelines.preflight import check_methods
from equipoise.pipelines.ray_local import look, start_ray
from equipoise.pipelines.seats import Resources
from equipoise.pipelines.tuning.config import TuneConfig, differences, load_tune
from equipoise.pipelines.tuning.confirm import confirm
from equipoise.pipelines.tuning.page import PAGE, write_page
from equipoise.pipelines.tuning.records import Record, Records
from equipoise.pipelines.tuning.room import Room, all_back, free, room_for
from equipoise.pipelines.tuning.trials import complete, trainable


@dataclass(frozen=True)
class FinishedSearch:
    """A search that has come to its end: `trials` as in trials.parquet, `best` the winner's whole run, `confirmed` as in
    confirm.json, `back` what was said of the resources, `page` the page of the search.
    """

    out: Path
    select: str
    trials: pd.DataFrame
    best: Config
    confirmed: dict[str, Any] | None
    back: str
    page: Path


def tune(
    config: str | Path | Mapping[str, Any], *arguments: str, verbose: bool = False, **overrides: Any
) -> FinishedSearch:
    """Search; the same call on an unfinished search goes on with it.

    Args:
        config: a YAML file or a mapping; see `equipoise.pipelines.tuning.config.TuneConfig`.
        arguments: overrides as "key=value"; `overrides`: the same as keywords.
        verbose: show Ray's own logs.

    Raises:
        EquipoiseError: what a person can mend, in a sentence.
        KeyboardInterrupt: stopped; the text says that the same call goes on.
    """
    made = load_tune(config, {**pairs(arguments), **overrides})
    manifest = Manifest.load(Path(made.base.data))
    check_methods(made.base, manifest)
    resources = look(verbose)
    room = room_for(made, resources)
    out = Path(made.out)
    with alone(out, "tune", "folder of the search"):
        _claim(out, made, manifest)
        return _Sitting(made, room, resources, verbose).run()


class _Sitting:
    """One sitting of a search, from where the ones before it came."""

    def __init__(self, config: TuneConfig, room: Room, resources: Resources, verbose: bool) -> None:
        self.config, self.room, self.resources, self.verbose = config, room, resources, verbose
        self.out = Path(config.out)
        self.records = Records(self.out)
        self.console = Console(stderr=True)
        self.errors: set[str] = set()

    def run(self) -> FinishedSearch:
        """The trials that are left, the tables, the winner, its look at test and the page."""
        # Where the thread of a trial does not end in this time (2 s by default, which is little on a busy machine), Tune gives
        # up the one that was to come next in its process, and tells no search of it.
        os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")
        start_ray(self.resources, self.room.cpus, self.verbose, dashboard=True)
        before = free()
        # When it would have begun, had it gone on without a break.
        self.started = time.time() - (read_json(self.out / "spent.json") or {"seconds": 0.0})["seconds"]
        try:
            for kind in self.room.at_once:
                self._trials(kind)
        finally:
            self._clock()
            trials = self.records.write_tables(self.out)
        try:
            best = self._winner()
            run = self._write_best(best)
            confirmed = self._confirm(best)
        finally:  # all failed, or a run of the look at test did: the page shows what there is
            if self.records.ended():
                write_page(self.out)
        back = all_back(before)
        return FinishedSearch(self.out, self.config.select, trials, run, confirmed, back, self.out / PAGE)

    def _trials(self, kind: str) -> None:
        from ray import tune

        from equipoise.pipelines.tuning.search import ATTEMPTS, Halving, Recorder, Search

        if len(self.records.ended(kind)) >= getattr(self.config.trials, kind):
            return
        settings = self._settings(kind)
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one says things at verbose=0 too
        each = {"cpu": self.config.cpus, "gpu": self.config.gpus} if kind == "light" else {"cpu": 0.01}
        sittings = self.out / "ray"
        search = Search(self.config, self.records, kind, lambda params: complete(kind, settings, params), self.started)
        tuner = tune.Tuner(
            tune.with_resources(trainable(kind, str(self.out)), each),
            tune_config=tune.TuneConfig(
                search_alg=search,
                scheduler=Halving(self.config, self.records) if self.config.stop == "asha" else None,
                num_samples=-1,  # the search knows when it has ended: a trial whose process died may come again
                max_concurrent_trials=self.room.at_once[kind],
                reuse_actors=kind == "light",
                trial_dirname_creator=lambda trial: f"{trial.config['number']:04d}-{trial.trial_id}",
            ),
            run_config=tune.RunConfig(
                name=f"{kind}-{len(list(sittings.glob('*'))):03d}",
                storage_path=str(sittings),
                callbacks=[Recorder(self.records, self._say)],
                failure_config=tune.FailureConfig(max_failures=ATTEMPTS - 1),
                verbose=0,
            ),
        )
        former = signal.getsignal(signal.SIGINT)
        try:
            tuner.fit()
        finally:
            # Tune leaves its own handler, which would swallow the next Ctrl-C.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, former)
        if len(self.records.ended(kind)) < getattr(self.config.trials, kind) and not search.exhausted:
            ended, wanted = len(self.records.ended()), self.config.trials.light + self.config.trials.train
            raise KeyboardInterrupt(
                f"Stopped after {ended} of {wanted} trials; those under way begin again. The same command goes on."
            )

    def _settings(self, kind: str) -> dict[str, Any]:
        return {
            "base": self.config.base.model_dump(mode="json"),
            "threads": self.room.threads.get(kind),
            "device": "cuda" if self.config.gpus else "cpu",
        }

    def _say(self, record: Record) -> None:
        """A line a trial that has ended; an error in full the first time only."""
        if record.status == "running":
            return
        self._clock()
        kept, of = record.kept, self.config.trials.light + self.config.trials.train
        line = f"trial {record.number} ({len(self.records.ended())} of {of}, {record.kind}): {record.status}"
        if record.status != "failed" and kept is not None:
            line += (
                f" at step {record.step}, {self.config.select} {kept[self.config.select]:.4f}, {record.seconds:.0f} s"
            )
        elif record.error not in self.errors:
            self.errors.add(str(record.error))
            line += f": {record.error}"
        self.console.print(Text(line), soft_wrap=True)

    def _clock(self) -> None:
        """Keep how long the search has taken, for budget.hours."""
        write_json(self.out / "spent.json", {"seconds": time.time() - self.started})

    def _winner(self) -> Record:
        best = self.records.best(self.config.select)
        if best is not None:
            return best
        if not self.records.ended():
            raise EquipoiseError("The budget was spent before a trial ended: raise budget.hours or budget.steps.")
        failed = [record for record in self.records.ended() if record.status == "failed"]
        if failed and len(failed) == len(self.records.ended()):
            raise EquipoiseError(f"All {len(failed)} trials failed; the first said: {failed[0].error}")
        raise EquipoiseError(
            f"No trial of {len(self.records.ended())} was trained to its end ({len(failed)} failed; the first said: "
            f"{failed[0].error if failed else 'nothing'}): raise trials.light or trials.train."
        )

    def _write_best(self, best: Record) -> Config:
        run = Config.model_validate(best.config)
        kept = best.kept or {}
        with atomic(self.out / "best.yaml") as part:
            part.write_text(
                f"# Trial {best.number} ({best.kind}) of the search in {self.out}: {self.config.select} on validation "
                f"{kept[self.config.select]:.4f} at step {kept['step']}.\n# equipoise fit {self.out / 'best.yaml'}\n"
                + yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False)
            )
        return run

    def _confirm(self, best: Record) -> dict[str, Any] | None:
        count = self.config.confirm.seeds
        kept = read_json(self.out / "confirm.json")
        if kept is not None and kept.get("trial") != best.number:
            (self.out / "confirm.json").unlink()  # of a former winner
        if not count:
            return None
        settings = {**self._settings("light"), "threads": max(1, int(self.config.cpus))}
        runs = {
            "default": complete("light", settings, self.config.default),
            "best": complete("light", settings, best.params),
        }
        seeds = [self.config.base.seed + 1 + i for i in range(count)]
        return confirm(
            self.out,
            best.number,
            runs,
            seeds,
            self.config.cpus,
            self.config.gpus,
            self.room.looks,
            lambda line: self.console.print(Text(line)),
        )


def _claim(out: Path, config: TuneConfig, manifest: Manifest) -> None:
    """Make the folder that of this search, or see that it is."""
    path = out / "tune.yaml"
    if path.is_file():
        differing = differences(load_tune(path), config)
        if differing:
            raise EquipoiseError(
                f"{out} holds a search of another configuration ({'; '.join(differing)}): choose another out=..., or delete "
                "the folder."
            )
    elif any(not file.name.startswith(".") for file in out.iterdir()):
        raise EquipoiseError(f"{out} is not empty and holds no search: choose another out=..., or empty it.")
    if (out / "manifest.json").is_file() and (began := Manifest.load(out).hash) != manifest.hash:
        raise EquipoiseError(
            f"{config.base.data} is not the data set that the search in {out} began with (hash {manifest.hash[:12]}, the "
            f"search's is {began[:12]}): prepare it again as it was, or choose another out=..."
        )
    manifest.save(out)
    with atomic(path) as part:
        part.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
