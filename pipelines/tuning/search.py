"""What to try next: Optuna's study, kept in a journal in the folder of the search, behind Ray Tune's searcher.

Imports Ray and Optuna: import it where Ray runs.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune import Callback
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.search.optuna import OptunaSearch

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.config import Config
from equipoise.pipelines.sentences import sentence_of
from equipoise.pipelines.tuning.config import TuneConfig
from equipoise.pipelines.tuning.records import Record, Records

#: The objectives of the study, both higher is better.
AIMS = ("full", "missing")
_NAME = "tune"
#: How often a trial is begun whose process dies.
ATTEMPTS = 2


def open_study(config: TuneConfig, records: Records) -> optuna.Study:
    """The study of a search: made with the default as its first trial, or brought to where the records are."""
    _quiet()
    study = optuna.create_study(
        study_name=_NAME, storage=_storage(config), directions=["maximize"] * len(AIMS), load_if_exists=True
    )
    if not study.trials:
        study.enqueue_trial(config.default)
    for trial in study.trials:
        record = records.by_number.get(trial.number)
        if trial.state == TrialState.RUNNING and record is not None and record.ended:
            _tell(study, trial.number, record)  # death came between the two
    return study


class _NotKept:
    """Ray pickles these now and then to restore an experiment with; a search goes on from its journal and records instead."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def save(self, checkpoint_path: str) -> None:
        """An empty file."""
        Path(checkpoint_path).touch()


class Search(_NotKept, OptunaSearch):
    """Suggests trials of one kind; a trial that was under way when a sitting ended is suggested again under its number;
    so is one whose process died before it began.

    `run` makes the whole configuration of some parameters. `started` is when the search began, in seconds since 1970, had it
    gone on without a break. Ends when the budget is spent: of steps, those spent and those that trials under way may still
    take count together.
    """

    def __init__(
        self, config: TuneConfig, records: Records, kind: str, run: Callable[[dict[str, Any]], Config], started: float
    ) -> None:
        self._config, self._records, self._kind, self._run, self._started = config, records, kind, run, started
        #: Whether it ended because the budget is spent.
        self.exhausted = False
        self._again: set[int] = set()
        self._study = study = open_study(config, records)
        self._left_over = [
            trial
            for trial in study.trials
            if trial.state == TrialState.RUNNING and _kind(records, trial.number, kind) == kind
        ]
        super().__init__(
            _Space(config),
            metric=list(AIMS),
            mode=["max"] * len(AIMS),
            sampler=_sampler(config, len(study.trials)),
            study_name=_NAME,
            storage=_storage(config),
        )

    def suggest(self, trial_id: str) -> Any:
        """{"number", "config" (JSON), "refused" (a sentence or "")} of the next trial; None where none can begin now,
        FINISHED where none will.
        """
        if self._spent():
            self.exhausted = not self._under_way
            return Searcher.FINISHED if self.exhausted else None
        wanted = getattr(self._config.trials, self._kind)
        if not self._left_over and len(self._records.ended(self._kind)) + self._under_way >= wanted:
            return None if self._under_way else Searcher.FINISHED  # one that is under way may come back
        if self._left_over:
            left = self._left_over.pop(0)
            self._ot_trials[trial_id] = optuna.trial.Trial(self._study, left._trial_id)
        said = super().suggest(trial_id) or {}
        params = {key: value for key, value in said.items() if key != "number"}
        record = self._records.by_number.get(said["number"]) or Record(said["number"], self._kind, params, {})
        refused = ""
        if not record.config:
            try:
                record.config = self._run(params).model_dump(mode="json")
            except EquipoiseError as error:  # the trial says so: here it would end the search
                refused = str(error)
        self._records.write(record)
        # As text: Tune would look for things to draw in a nested configuration.
        return {"number": record.number, "config": json.dumps(record.config), "refused": refused}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the end of a trial and tell the study; one whose process died before it began is left for `suggest`, once."""
        trial = self._ot_trials.pop(trial_id)
        record = self._records.by_number[trial.number]
        if error and not record.error and record.attempts < ATTEMPTS and trial.number not in self._again:
            # Tune gives a trial up whose process died before it began. Once more: where none can begin, none ever will.
            self._again.add(trial.number)
            self._left_over.append(trial)
            return
        # In this order: what was recorded is told again if death comes between.
        if error or record.error:
            record.status, record.error = "failed", record.error or _died(record)
        elif record.status == "running":
            record.status = "done"
        self._records.write(record)
        _tell(self._study, trial.number, record)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: values are told at the end."""

    @property
    def _under_way(self) -> int:
        return len(self._ot_trials)

    def _spent(self) -> bool:
        budget, most = self._config.budget, self._config.base.max_steps or 0
        if budget.hours is not None and time.time() - self._started > 3600 * budget.hours:
            return True
        if budget.steps is None:
            return False
        running = sum(most - self._records.by_number[t.number].step for t in self._ot_trials.values())
        return self._records.steps + running + most > budget.steps


class Halving(_NotKept, AsyncHyperBandScheduler):
    """ASHA over optimiser steps, with the trials of earlier sittings and of the other kind in its rungs.

    Values are what `select` names, higher is better, at the first epoch's end past a rung. A trial that it ends is marked so.
    """

    def __init__(self, config: TuneConfig, records: Records) -> None:
        most = config.base.max_steps or 0
        grace = max(1, round(config.grace * most))
        super().__init__(
            "step", config.select, "max", max_t=most, grace_period=grace, reduction_factor=config.reduction
        )
        self._records, self._most = records, most
        for record in records.ended():
            past: Any = SimpleNamespace(trial_id=f"past-{record.number}")
            self.on_trial_add(None, past)  # type: ignore[arg-type]
            for row in record.curve:
                super().on_trial_result(None, past, row)  # type: ignore[arg-type]

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        action = super().on_trial_result(tune_controller, trial, result)
        # The last epoch ends by itself.
        if action != TrialScheduler.STOP or result["step"] >= self._most:
            return TrialScheduler.CONTINUE
        self._records.by_number[trial.config["number"]].status = "stopped"
        return action


class Recorder(_NotKept, Callback):
    """Writes down what trials report; `say` is given a line when one has ended."""

    def __init__(self, records: Records, say: Any) -> None:
        self._records, self._say = records, say
        self._began: dict[int, tuple[float, float]] = {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        record = self._of(trial)
        record.attempts += 1
        self._began[record.number] = time.monotonic(), record.seconds
        self._records.write(record)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        record = self._of(trial)
        began, before = self._began[record.number]
        record.seconds = before + time.monotonic() - began
        if "error" in result:
            record.error = result["error"]
        else:
            record.add(result["row"])
        self._records.write(record)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        record = self._of(trial)
        sentence = sentence_of(trial.get_error())
        if sentence or record.attempts >= ATTEMPTS:
            record.error = str(sentence) if sentence else _died(record)
        self._records.write(record)
        self._say(record)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._say(self._of(trial))

    def _of(self, trial: Any) -> Record:
        return self._records.by_number[trial.config["number"]]


def _died(record: Record) -> str:
    if record.attempts < ATTEMPTS:
        return "its process died, and no other could begin" if record.attempts else "no process for it could begin"
    return f"its process died {record.attempts} times"


class _Space:
    """The space as Optuna asks for it, with the number of the trial."""

    def __init__(self, config: TuneConfig) -> None:
        self._space = config.searched

    def __call__(self, trial: Any) -> dict[str, Any]:
        self._space.suggest(trial)
        return {"number": trial.number}


def _sampler(config: TuneConfig, past: int) -> BaseSampler:
    """`past`: trials that there are; a sampler that begins anew must not draw again what it drew then."""
    seed = (config.seed + 1_000_003 * past) % 2**32  # what NumPy takes
    if config.sampler == "random":
        return RandomSampler(seed=seed)
    wanted = config.trials.light + config.trials.train
    # Options depend on one another (multivariate), some exist only beside others (group), and trials run at the same time
    # (constant_liar). A third of a short search at random, at most Optuna's ten.
    return TPESampler(
        seed=seed, multivariate=True, group=True, constant_liar=True, n_startup_trials=max(1, min(10, wanted // 3))
    )


def _tell(study: optuna.Study, number: int, record: Record) -> None:
    kept = record.kept
    if record.status == "failed" or kept is None:
        study.tell(number, state=TrialState.FAIL)
    else:
        study.tell(number, [kept[name] for name in AIMS])


def _kind(records: Records, number: int, default: str) -> str:
    record = records.by_number.get(number)
    return record.kind if record else default


def _storage(config: TuneConfig) -> JournalStorage:
    return JournalStorage(JournalFileBackend(str(Path(config.out) / "study.journal")))


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", message="Fixed parameter", category=UserWarning)
