"""A run folder, and what can be read from it."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import yaml

from equipoise.datasets.manifest import Manifest
from equipoise.datasets.opening import open_parquet
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.checkpoint import Checkpoints
from equipoise.pipelines.config import Config, load_config

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from equipoise.models.contract import MultimodalModel
    from equipoise.pipelines.sweeps import SweepResult


class Run:
    """One training run on disk: configuration, metrics, values, plans and checkpoints.

    >>> run = Run.open("runs/digits-sample")                # doctest: +SKIP
    >>> run.metrics[["epoch", "validation/accuracy"]]       # doctest: +SKIP
    >>> run.values("train", epoch="best").to_pandas()       # doctest: +SKIP
    """

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path = Path(path)
        self.config = config
        self.checkpoints = Checkpoints(self.path / "checkpoints")

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """The run in a folder.

        Raises:
            EquipoiseError: the folder holds no run.
        """
        path = Path(path)
        try:
            there = (path / "config.yaml").is_file()
        except OSError as error:
            raise EquipoiseError(f"Cannot read the run folder {path} ({error.strerror}).") from error
        if not there:
            raise EquipoiseError(f"{path} holds no run (no config.yaml): give the folder that `equipoise fit` printed.")
        return cls(path, load_config(path / "config.yaml"))

    def __repr__(self) -> str:
        return (
            f"Run({str(self.path)!r}, balancer={self.config.balancer.name!r}, resampler={self.config.resampler.name!r})"
        )

    @cached_property
    def manifest(self) -> Manifest:
        """Of the data set that the run trains on; its own copy lies in the run folder.

        Raises:
            EquipoiseError: the data set is not the one that the run began with.
        """
        if not (Path(self.config.data) / "manifest.json").is_file():
            return self.own_manifest  # what needs the rows themselves says that they are gone
        found = Manifest.load(Path(self.config.data))
        if (self.path / "manifest.json").is_file():
            own = Manifest.load(self.path)
            if own.hash != found.hash:
                raise EquipoiseError(
                    f"{self.config.data} is not the data set that the run in {self.path} began with (hash {found.hash[:12]}, "
                    f"the run's is {own.hash[:12]}): prepare it again as it was, or start a run in a new folder."
                )
        return found

    @cached_property
    def own_manifest(self) -> Manifest:
        """The run's own copy of the manifest: all that decodes rows for its models, also where the data set is gone."""
        own = self.path / "manifest.json"
        return Manifest.load(self.path if own.is_file() else Path(self.config.data))

    @property
    def metrics(self) -> pd.DataFrame:
        """A row an epoch: losses, validation metrics by coalition, mean contributions, seconds by phase."""
        return self._table("metrics.parquet")

    @property
    def steps(self) -> pd.DataFrame:
        """A row a step: losses, what the balancer reports, seconds waited and computed."""
        return self._table("steps.parquet")

    @property
    def finished(self) -> bool:
        """Whether `fit` came to its end: the budget spent, the final sweep made."""
        return (self.path / "finished.json").is_file()

    def epochs(self, split: str = "train") -> list[int | str]:
        """The epochs of which a finished sweep of a split is stored; "best" last, if it is of the best checkpoint."""
        from equipoise.pipelines.sweeps import read_result

        found = {p.parent.name: p.parent for p in (self.path / "values" / split).glob("*/matrix.json")}
        numbers: list[int | str] = [*sorted(int(name) for name in found if name.isdigit())]
        best = self.checkpoints.best
        # A run that went on after it was evaluated may have found a better checkpoint since.
        fresh = "best" in found and best is not None and read_result(found["best"]).model_hash == best["model_hash"]
        return [*numbers, *(["best"] if fresh else [])]

    def values(self, split: str = "train", epoch: str | int = "best") -> pa.Table:
        """The stored values of a sweep, sorted by sample_id: score bits, contributions and copies of every sample.

        Args:
            split: "train", "validation" or "test".
            epoch: "best", an epoch's number, or -1 for the last swept one.

        Raises:
            EquipoiseError: no such sweep (the epochs that exist are named), or a store of another model or data set.
        """
        from equipoise.valuation.store import read_values

        swept = self._swept(split, epoch)
        expected = {
            "modalities": self.manifest.names,
            "manifest_hash": self.manifest.hash,
            "split": split,
            "benefit": self.manifest.build_task().benefit_name,
            "absence": self.config.model.resolved_absence,
        }
        if swept == "best":
            expected["model_hash"] = (self.checkpoints.best or {})["model_hash"]
        return read_values(self.values_folder(split, swept), expected, opener=open_parquet)

    def matrix(
        self, split: str = "validation", epoch: str | int = "best", batch_size: int | None = None
    ) -> pd.DataFrame:
        """Metrics of all 2^M - 1 coalitions on a split, full set first. Sweeps the best model over the split, in this
        process, where that has not been done yet.
        """
        import pandas as pd

        from equipoise.pipelines.sweeps import matrix_rows

        return pd.DataFrame(matrix_rows(self.result(split, epoch, batch_size), self.manifest.names))

    def result(
        self, split: str, epoch: str | int = "best", batch_size: int | None = None, valuers: Any = None
    ) -> SweepResult:
        """The sweep behind `matrix` and `values`."""
        from equipoise.pipelines.sweeps import read_result, run_sweep

        if epoch == "best" and "best" not in self.epochs(split):
            return run_sweep(self.sweep(split, "best", self.best_checkpoint() / "model.pt", batch_size), valuers)
        return read_result(self.values_folder(split, self._swept(split, epoch)))

    def impaired(self, split: str = "test", share: float = 1.0, seed: int = 0) -> pd.DataFrame:
        """Metrics of the best model with each modality missing or noisy: see `equipoise.pipelines.impaired`. Kept in the run
        folder, impaired/<split>.parquet, and made anew for another share or seed, or another best model.
        """
        import pandas as pd
        import pyarrow as pa
        import pyarrow.parquet as pq

        from equipoise.datasets.reading import Reader
        from equipoise.pipelines.files import atomic
        from equipoise.pipelines.impaired import impaired

        self.manifest.split(split)
        path = self.path / "impaired" / f"{split}.parquet"
        best = (self.checkpoints.best or {}).get("model_hash", "")
        made = f"share={share} seed={seed} manifest={self.manifest.hash} model={best}".encode()
        if path.is_file():
            kept = open_parquet(path).read()
            if (kept.schema.metadata or {}).get(b"equipoise") == made:
                return kept.to_pandas()
        model, batch_size = self.best_model(), self.config.valuation.batch_size
        found = impaired(
            model, self.manifest.build_task(), Reader(self.config.data), split, share, seed, batch_size=batch_size
        )
        path.parent.mkdir(exist_ok=True)
        with atomic(path) as part:
            pq.write_table(
                pa.Table.from_pandas(found, preserve_index=False).replace_schema_metadata({b"equipoise": made}), part
            )
        return pd.DataFrame(found)

    def best_checkpoint(self) -> Path:
        """The folder of the checkpoint with the best validation metric.

        Raises:
            EquipoiseError: no epoch has been validated yet.
        """
        best = self.checkpoints.best
        if best is None:
            raise EquipoiseError(f"The run in {self.path} has no validated checkpoint yet: let it finish an epoch.")
        return self.checkpoints.folder / str(best["checkpoint"])

    def best_model(self) -> MultimodalModel:
        """The best epoch's model, on the CPU, in eval mode."""
        import torch

        from equipoise.pipelines.assembly import assemble

        model, path = assemble(self.config, self.own_manifest), self.best_checkpoint() / "model.pt"
        try:
            model.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        except (OSError, EOFError, RuntimeError, UnpicklingError) as error:
            first = (str(error) or type(error).__name__).splitlines()[0]
            raise EquipoiseError(
                f"{path} is missing, damaged or of another model ({first}): the run has to be made again."
            ) from error
        return model.eval()

    def values_folder(self, split: str, epoch: str | int) -> Path:
        return self.path / "values" / split / (epoch if isinstance(epoch, str) else f"{epoch:04d}")

    def plan(self, epoch: int) -> Path:
        """Where the resampling plan of an epoch lies, if it has one."""
        return self.path / "plans" / f"{epoch:04d}.npy"

    @property
    def stop(self) -> Path:
        """A file that asks the workers to leave a checkpoint and stop."""
        return self.path / "stop"

    def reused(self, epoch: int) -> Path:
        """There where the plan of an epoch is one that was used before, because the valuation actors were lost."""
        return self.path / "plans" / f"{epoch:04d}.reused.json"

    def sweep(
        self, split: str, epoch: str | int, weights: Path, batch_size: int | None = None, ids: Path | None = None
    ) -> Any:
        """The `Sweep` of a split with some weights."""
        import torch

        from equipoise.pipelines.assembly import assemble
        from equipoise.pipelines.fingerprint import model_hash
        from equipoise.pipelines.valuer import Sweep
        from equipoise.valuation.store import StoreInfo

        manifest, task = self.manifest, self.manifest.build_task()
        if split not in manifest.splits:
            raise EquipoiseError(f"Unknown split {split!r}: the data set has {', '.join(manifest.splits)}.")
        model = assemble(self.config, manifest)
        state = torch.load(weights, map_location="cpu", weights_only=True)
        return Sweep(
            data=self.config.data,
            split=split,
            folder=str(self.values_folder(split, epoch)),
            weights=str(weights),
            model=self.config.model.model_dump(),
            unimodal=model.unimodal,
            info=StoreInfo(
                modalities=manifest.names,
                benefit=task.benefit_name,
                graded=task.graded,
                absence=model.absence,
                model_hash=model_hash(state),
                manifest_hash=manifest.hash,
                split=split,
                epoch=str(epoch),
            ),
            batch_size=batch_size or self.config.valuation.batch_size,
            ids=None if ids is None else str(ids),
            thorough=epoch == "best",
            # Valued as they are trained on: what a row is made to lack is no player of its.
            impairment=self.config.impairment.of_rows if split == "train" and self.config.impairment else None,
        )

    def _swept(self, split: str, epoch: str | int) -> str | int:
        known = self.epochs(split)
        numbers = [e for e in known if isinstance(e, int)]
        wanted = numbers[-1] if epoch == -1 and numbers else epoch
        if wanted not in known:
            raise EquipoiseError(
                f"No values of split {split!r} for epoch {epoch!r} in {self.path}: "
                + (f"there are {', '.join(map(str, known))}." if known else "no sweep of it has been made.")
            )
        return wanted

    def _table(self, name: str) -> pd.DataFrame:
        path = self.path / name
        if not path.is_file():
            raise EquipoiseError(f"{path} is not there yet: the run has not finished its first epoch.")
        return open_parquet(path).read().to_pandas()


def write_config(path: Path, config: Config) -> None:
    """Write a configuration whole, defaults included."""
    from equipoise.pipelines.files import atomic

    with atomic(path) as part:
        part.write_text(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
