"""The `equipoise` command line: a thin face over `equipoise.pipelines`."""

import shlex
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich import box
from rich.console import Console
from rich.text import Text

from equipoise.models.errors import EquipoiseError

app = typer.Typer(
    name="equipoise",
    help="Measure what each modality contributes to every sample, and balance the training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value ...]", help="overrides", show_default=False)]


@app.command()
def demo(out: Annotated[Path, typer.Option(help="where data and runs go")] = Path("runs/demo")) -> None:
    """Joint training, sample resampling and random copies on digits, side by side, in minutes."""
    from equipoise.pipelines.demo import demo

    demo(out, console)


@app.command()
def prepare(
    source: Annotated[str, typer.Argument(help="a data set (`equipoise list data`), or a data.yaml of your own data")],
    out: Annotated[Path, typer.Option(help="folder to write")],
    options: Overrides = None,
    seed: Annotated[int | None, typer.Option(help="of the row order and the split; 0, or what data.yaml says")] = None,
    overwrite: Annotated[bool, typer.Option(help="replace a data set that is there")] = False,
) -> None:
    """Write a data set in the project's format: shards, a manifest, train / validation / test."""
    from equipoise.datasets.data_yaml import is_data_yaml, prepare_yaml
    from equipoise.datasets.prepare import prepare
    from equipoise.pipelines.config import pairs

    given = {**({} if seed is None else {"seed": seed}), **pairs(options or [])}
    manifest = (prepare_yaml if is_data_yaml(source) else prepare)(source, out, overwrite=overwrite, **given)
    if manifest.terms:
        console.print(manifest.terms, style="yellow")
    if manifest.skipped:
        console.print(f"{len(manifest.skipped)} bad rows left out; manifest.json lists them.", style="yellow")
    sizes = ", ".join(f"{split.rows} {title}" for title, split in manifest.splits.items())
    console.print(
        f"{out}: {sizes} rows; modalities {', '.join(manifest.names)}; hash {manifest.hash[:12]}", soft_wrap=True
    )


@app.command()
def fit(
    config: Annotated[Path, typer.Argument(help="a YAML file, such as examples/digits.yaml")],
    overrides: Overrides = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="show Ray's own logs")] = False,
) -> None:
    """Train, valuing samples between epochs. The same command goes on with an unfinished run."""
    from equipoise.pipelines.fit import fit
    from equipoise.pipelines.sweeps import matrix_rows
    from equipoise.pipelines.tables import matrix_table

    try:
        run = fit(config, *(overrides or []), verbose=verbose)
    except KeyboardInterrupt as stopped:
        again = shlex.join(["equipoise", "fit", str(config), *(overrides or [])])
        Console(stderr=True).print(Text(f"{stopped or 'Stopped.'}\n  {again}"), soft_wrap=True)
        raise typer.Exit(130) from None
    best = run.checkpoints.best or {}
    rows = matrix_rows(run.result("validation", best["epoch"]), run.manifest.names)
    console.print(matrix_table(rows, f"Validation, best epoch: {best['epoch']} of 0 to {len(run.metrics) - 1}"))
    console.print(f"run folder: {run.path}\nnext: equipoise evaluate {run.path} --split test")


@app.command()
def tune(
    config: Annotated[Path, typer.Argument(help="a YAML file, such as examples/tune-watch.yaml")],
    overrides: Overrides = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="show Ray's own logs")] = False,
) -> None:
    """Search options and training parameters by validation. The same command goes on with an unfinished search."""
    from equipoise.pipelines.tuning.shown import show
    from equipoise.pipelines.tuning.tune import tune

    try:
        search = tune(config, *(overrides or []), verbose=verbose)
    except KeyboardInterrupt as stopped:
        again = shlex.join(["equipoise", "tune", str(config), *(overrides or [])])
        Console(stderr=True).print(Text(f"{stopped or 'Stopped.'}\n  {again}"), soft_wrap=True)
        raise typer.Exit(130) from None
    show(search, console)


@app.command()
def evaluate(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    split: Annotated[str, typer.Option(help="train, validation or test")] = "validation",
    impair: Annotated[bool, typer.Option("--impair", help="with each modality missing and noisy, too")] = False,
    severity: Annotated[int, typer.Option(min=1, max=5, help="of the noise in the table of --impair")] = 3,
    share: Annotated[float, typer.Option(min=0, max=1, help="of the rows that get noise")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, help="of which rows lack what, and of the noise")] = 0,
) -> None:
    """The best model's metrics for every subset of modalities; the run card then has them too."""
    from equipoise.pipelines.card import write_card
    from equipoise.pipelines.impaired import curve_table, impaired_table
    from equipoise.pipelines.run import Run
    from equipoise.pipelines.sweeps import matrix_rows
    from equipoise.pipelines.tables import matrix_table

    opened = Run.open(run)
    rows = matrix_rows(opened.result(split), opened.manifest.names)
    console.print(matrix_table(rows, f"{opened.config.balancer.name} + {opened.config.resampler.name}: {split}"))
    write_card(opened)
    if impair:
        headline = opened.manifest.build_task().headline
        found = opened.impaired(split, share, seed)
        console.print(impaired_table(found, severity))
        for condition in ("missing", "noisy"):
            console.print(curve_table(found, headline, condition))


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="one run folder, or several side by side")],
    out: Annotated[Path | None, typer.Option(help="file to write; RUN/report.html of the first")] = None,
) -> None:
    """Write a self-contained HTML page of one run, or of several side by side."""
    from equipoise.pipelines.report import write_report
    from equipoise.pipelines.run import Run

    console.print(f"report: {write_report([Run.open(run) for run in runs], out)}", soft_wrap=True)


@app.command()
def compare(
    config: Annotated[Path, typer.Argument(help="a YAML file, such as examples/compare.yaml")],
    overrides: Overrides = None,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="train nothing, write the tables of what is there")
    ] = False,
) -> None:
    """Compare methods with equal tuning and equal steps. The same command goes on with an unfinished comparison."""
    from equipoise.pipelines.comparing.compare import compare

    try:
        files = compare(config, *(overrides or []), rebuild=rebuild)
    except KeyboardInterrupt:
        again = shlex.join(["equipoise", "compare", str(config), *(overrides or [])])
        Console(stderr=True).print(Text(f"Stopped; what is made is kept. To go on:\n  {again}"), soft_wrap=True)
        raise typer.Exit(130) from None
    console.print("\n".join(map(str, files)), soft_wrap=True)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="a run folder, or a folder that `equipoise export` wrote")],
    rows: Annotated[Path, typer.Argument(help="a csv or Parquet file, or a folder")],
    out: Annotated[Path, typer.Option(help="file to write: .csv or .parquet")],
    on_bad: Annotated[str, typer.Option(help="rows that cannot be used: stop and list them, or skip")] = "stop",
) -> None:
    """Predict new rows with the best model; modalities may be missing."""
    from equipoise.pipelines.predict import predict

    predict(run, rows, out, console, on_bad)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="a run folder")],
    out: Annotated[Path, typer.Option(help="folder to write")],
) -> None:
    """Write the best model as safetensors with its configuration and fitted state; it loads without Ray."""
    from equipoise.pipelines.export import export
    from equipoise.pipelines.run import Run

    console.print(f"exported: {export(Run.open(run), out)}", soft_wrap=True)


@app.command()
def init(
    source: Annotated[Path, typer.Argument(help="your csv or Parquet file, or a folder")],
    out: Annotated[Path, typer.Option(help="folder for the starter files")] = Path("."),
    target: Annotated[str | None, typer.Option(help="column to predict, where the guess would be wrong")] = None,
) -> None:
    """Look at your data and write starter configurations: data.yaml for `prepare`, fit.yaml for `fit`."""
    from equipoise.pipelines.init import init

    init(source, out, console, target)


@app.command()
def doctor(
    config: Annotated[Path | None, typer.Argument(help="a YAML file, to see who would sit where")] = None,
    overrides: Overrides = None,
    verify: Annotated[bool, typer.Option("--verify", help="read the whole data set and compare its hashes")] = False,
) -> None:
    """Look at this installation, this machine and Ray, and at whether a run could start; says what to do."""
    from equipoise.pipelines.doctor import doctor

    if not doctor(config, overrides or [], console, verify):
        raise SystemExit(1)


@app.command(name="list")
def list_(
    what: Annotated[str, typer.Argument(help="balancers, resamplers or data; nothing for all")] = "",
) -> None:
    """What can be chosen: balancers, resamplers, data sets."""
    from equipoise import balancers, valuation
    from equipoise.datasets import sources
    from equipoise.datasets.task_spec import KINDS
    from equipoise.models.contract import Unimodal
    from equipoise.models.errors import unknown
    from equipoise.pipelines.tables import table

    def options(method: Any) -> str:
        return ", ".join(type(method).Options.model_fields) or "-"

    def balancing() -> None:
        """A row a balancer, whole where the output is a pipe."""
        rows = []
        for name in balancers.names():
            b = balancers.get(name)
            tasks = "all" if set(b.tasks) == set(KINDS) else "\n".join(b.tasks)
            passes = ", ".join(str(b.backward_passes(m)) for m in (2, 3))
            most = "any" if b.max_modalities is None else f"up to {b.max_modalities}"
            accepts = "any" if set(b.accepts) == set(get_args(Unimodal)) else "\n".join(b.accepts)
            rows.append([name, b.family, b.losses, passes, tasks, most, accepts, ", ".join(b.fusions or ["any"])])
        columns = ["name", "family", "objectives", "passes", "tasks", "modalities", "accepts", "fusion"]
        shown = table("Balancers", columns, rows)
        shown.box, shown.pad_edge, shown.collapse_padding = box.SIMPLE_HEAD, False, True
        for i, column in enumerate(shown.columns):  # so that no word is broken
            column.min_width = max(len(word) for row in [columns, *rows] for word in row[i].split())
        if sum((column.min_width or 0) + 2 for column in shown.columns) <= console.width:
            console.print(shown)
        else:  # a line a method: in a narrow terminal or a pipe a table would lose its last columns
            for name, *facts in rows:
                line = "; ".join(f"{k} {', '.join(v.splitlines())}" for k, v in zip(columns[1:], facts, strict=True))
                console.print(Text(f"{name:<18}{line}"), soft_wrap=True)
        console.print(
            "passes: backward passes of a step at 2 and at 3 modalities. accepts: kinds of unimodal logits.\n"
            "Options, formulas and when to use which: docs/methods.",
            soft_wrap=True,
        )

    def resampling() -> None:
        rows = []
        for name in valuation.names():
            method = valuation.get(name)
            first = (type(method).__doc__ or "").strip().split("\n\n")[0]
            rows.append([name, " ".join(first.split()), options(method)])
        console.print(table("Resamplers", ["name", "what it does", "options"], rows))

    def data() -> None:
        rows = [[n, sources.summary(n), ", ".join(sources.options_of(n)) or "-"] for n in sources.names()]
        console.print(table("Data sets", ["name", "what it is", "options"], rows))

    shown = {
        "balancers": balancing,
        "resamplers": resampling,
        "data": data,
    }
    if what and what not in shown:
        raise unknown("list", what, shown)
    for name in [what] if what else list(shown):
        shown[name]()


def main() -> None:
    """Run the command line; a sentence for the user ends it with status 2 and no traceback."""
    try:
        app()
    except EquipoiseError as error:
        # Text, not markup: a path or a shape in the sentence may look like a tag.
        Console(stderr=True).print(Text.assemble(("equipoise: ", "bold red"), str(error)), soft_wrap=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
