"""The best model of a run as a folder that stands alone: weights, configuration, fitted state, and how to use it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from secrets import token_hex

from safetensors.torch import save_file

from equipoise.models.errors import EquipoiseError
from equipoise.pipelines.run import Run
from equipoise.pipelines.trained import CONFIG, WEIGHTS, TrainedModel, from_run

_README = """# {name}

The best model of an Equipoise run: {kind} of {modalities}, trained on the data set `{data}`
(hash `{hash}`) for {task}: {labels}. The balancer was `{balancer}`, the resampler
`{resampler}`. Any modality may be missing.
{terms}
| file | what it is |
|---|---|
| `model.safetensors` | the weights |
| `config.json` | model, modalities, state fitted on train rows, labels, versions |

New rows from a csv or Parquet file with the columns {columns}:

```sh
equipoise predict {folder} new.csv --out predictions.{suffix}
```

From Python, without Ray:

```python
import equipoise

trained = equipoise.load_exported("{folder}")
batch = trained.encode(rows)  # rows: [{{column: value}}, ...]; pictures and sounds as the bytes of their files
logits = trained.logits(batch)  # float32 [{shape}], in the order of trained.labels
print(trained.predict(rows))  # {predicted}
```
"""

_PREDICTED = {
    "classification": "[{label: probability}, ...]",
    "multilabel": "[{label: probability}, ...]; predicted is what is above 0.5",
    "regression": "[{name: number in the units of the target}, ...]",
    "segmentation": "[{region: mask, bool array of the row's shape}, ...]",
}


def export(run: Run, out: str | Path) -> Path:
    """Write the best model of a run into the folder `out`, whole or not at all; returns it.

    Raises:
        EquipoiseError: no validated checkpoint yet, or `out` is not free or cannot be written.
    """
    out = Path(out)
    trained = from_run(run)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise EquipoiseError(f"{out} is there already and not empty: name another folder with --out.")
    made = out.parent / f".{out.name}.exporting-{token_hex(4)}"
    try:
        made.mkdir(parents=True)
        save_file({k: v.contiguous() for k, v in trained.model.state_dict().items()}, made / WEIGHTS)
        (made / CONFIG).write_text(trained.config.model_dump_json(indent=1), encoding="utf-8")
        (made / "README.md").write_text(_readme(trained, run.path.name, out), encoding="utf-8")
        os.replace(made, out)
    except OSError as error:
        raise EquipoiseError(f"Cannot write the folder {out} ({error.strerror}): name another with --out.") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return out


def _readme(trained: TrainedModel, name: str, out: Path) -> str:
    config = trained.config
    key = [config.sample_key] if config.sample_key else []
    columns = [*key, *(column for m in config.modalities for column in m.sources)]
    spec = config.task
    dims = map(str, ("rows", len(spec.labels), *(spec.shape or ())))
    return _README.format(
        name=name,
        kind=config.model.described,
        modalities=", ".join(f"{m.name} ({m.kind})" for m in config.modalities),
        task=spec.described,
        labels=", ".join(" ".join(label.split()) for label in spec.labels[:20])
        + (", ..." if len(spec.labels) > 20 else ""),
        shape=", ".join(dims),
        predicted=_PREDICTED[spec.kind],
        suffix="parquet" if spec.kind == "segmentation" else "csv",
        data=config.data["name"],
        hash=config.data["hash"][:12],
        balancer=config.run["balancer"]["name"],
        resampler=config.run["resampler"]["name"],
        terms=f"\nTerms of the data: {config.data['terms']}\n" if config.data["terms"] else "",
        columns=", ".join(f"`{column}`" for column in columns),
        folder=out.name,
    )
