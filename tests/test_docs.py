"""The documents: every Python block and example runs, every command line parses, every table says what the code says."""

import inspect
import re
import runpy
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import newcomer
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import typer
import yaml
from light_runs import light_run
from pydantic import BaseModel

import equipoise
from equipoise import EquipoiseError, Run, balancers, valuation
from equipoise.balancers.balancer import PLANNED, REGISTRY, Family
from equipoise.cli import app
from equipoise.datasets import sources
from equipoise.datasets.data_yaml import DataConfig
from equipoise.datasets.prepare import prepare
from equipoise.models import MLP, Classification, LateFusion, Modality
from equipoise.models.modality import Kind
from equipoise.pipelines.assembly import assemble
from equipoise.pipelines.checkpoint import Position
from equipoise.pipelines.config import Config, load_config
from equipoise.pipelines.fingerprint import model_hash
from equipoise.pipelines.fit import fit
from equipoise.pipelines.history import History
from equipoise.pipelines.run import write_config
from equipoise.pipelines.tuning.config import TuneConfig, load_tune

REPO = Path(equipoise.__file__).parents[1]
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted((REPO / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(REPO)) for page in PAGES]
CARDS = REPO / "docs" / "methods"


def text(name: str) -> str:
    return (REPO / name).read_text()


# What runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the pages are read: the data and the run that they speak of are there, made without Ray."""
    root = tmp_path_factory.mktemp("reader")
    manifest = prepare("digits", root / "data" / "digits")
    where = {"data": str(root / "data" / "digits"), "out": str(root / "runs" / "digits")}
    config = load_config(REPO / "examples" / "digits.yaml", where)
    run = Run(config.out, config)
    write_config(run.path / "config.yaml", config)
    after, weights = Position(1, 0), assemble(config, manifest).state_dict()
    run.checkpoints.commit(run.checkpoints.draft(after, weights), after, {})
    best = {"epoch": 0, "checkpoint": str(after), "metric": "accuracy", "value": 0.1, "loss": 2.3}
    run.checkpoints.set_best({**best, "model_hash": model_hash(weights)})
    run.result("train")
    metrics = History(run.path / "metrics.parquet")
    metrics.append({"epoch": 0, "step": 20, "validation/accuracy": 0.1})
    metrics.write()

    (root / "my" / "clips").mkdir(parents=True)
    clips = range(120)
    table = {
        "clip": [f"clip-{i}" for i in clips],
        "artist": [f"artist-{i // 3}" for i in clips],
        "genre": [("jazz", "rock")[i % 2] for i in clips],
        "mfcc": [None if i == 7 else np.sin(np.arange(40.0) + i).tolist() for i in clips],
        "lyrics": [f"word{i} and word{i // 2}" for i in clips],
    }
    pq.write_table(pa.table(table), root / "my" / "clips" / "part-0.parquet")
    return root


def blocks(name: str) -> Iterator[tuple[int, str]]:
    """(line, code) of a page's Python blocks, but for those under a `<!-- not run: why -->`."""
    for match in re.finditer(r"(<!-- not run: .+? -->\n)?```python\n(.*?)```", text(name), re.DOTALL):
        if not match[1]:
            yield text(name)[: match.start(2)].count("\n"), match[2]


@pytest.mark.parametrize("name", [name for name in NAMES if list(blocks(name))])
def test_python_blocks_run(name, folder, monkeypatch):
    monkeypatch.chdir(folder)
    registered = dict(REGISTRY)
    there: dict[str, Any] = {}
    try:
        for line, code in blocks(name):
            exec(compile("\n" * line + code, name, "exec"), there)  # the page's own lines in a traceback
    finally:
        REGISTRY.clear()
        REGISTRY.update(registered)


def test_the_readme_balances_a_step_in_ten_lines():
    code = next(code for _, code in blocks("README.md"))
    assert len([line for line in code.splitlines() if line.strip()]) == 10
    assert "BalancedStep" in code


def test_the_plain_torch_example_runs(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["plain_torch.py"])
    runpy.run_path(str(REPO / "examples" / "plain_torch.py"), run_name="__main__")
    accuracy = dict(re.findall(r"^  ([\w+]+) +(0\.\d+)$", capsys.readouterr().out, re.MULTILINE))
    assert float(accuracy["left+right"]) > 0.9


def command_lines() -> Iterator[tuple[str, str]]:
    for name in NAMES:
        for block in re.findall(r"```sh\n(.*?)```", text(name), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if line.strip() and not line.lstrip().startswith("#"):
                    yield name, line.split("  #")[0].strip()


@pytest.mark.parametrize(("name", "line"), list(command_lines()))
def test_command_lines_parse(name, line, monkeypatch):
    monkeypatch.chdir(REPO)
    command, *words = [w for w in shlex.split(line) if not re.fullmatch(r"[A-Z_]+=\S*", w)]
    if command == "make":
        assert all(re.search(rf"^{word}:", text("Makefile"), re.MULTILINE) for word in words), line
    elif command == "equipoise":
        group = typer.main.get_command(app)
        verb = group.commands[words[0]]  # type: ignore[attr-defined]
        with verb.make_context(words[0], words[1:]) as context:
            given = context.params
        if words[0] == "fit" and words not in newcomer.commands():  # whose files its own commands write, see below
            load_config(given["config"], given["overrides"] or [])
        if words[0] == "tune":
            load_tune(given["config"], given["overrides"])
    else:
        assert command in ("python", "git", "torchrun", "ray"), f"{name} has a command that nobody checks: {line}"


def test_the_newcomer_s_commands_work(tmp_path, monkeypatch):
    """The page's commands in turn, `fit` without Ray; tests/test_newcomer.py runs it on Ray."""
    newcomer.write_pets(tmp_path / "my")
    monkeypatch.chdir(tmp_path)
    for words in newcomer.commands():
        if words[0] == "fit":
            given = yaml.safe_load(Path(words[1]).read_text())
            light_run(Path(given.pop("out")), Path(given.pop("data")), **{**given, "max_epochs": 2})
        elif words[0] == "evaluate":
            Run.open(words[1]).result("test")  # the run card that it writes needs what only `fit` records
        else:
            newcomer.run(words)
    found = pd.read_csv(tmp_path / "pets" / "predictions.csv")
    assert found.equals(pd.read_csv(tmp_path / "pets" / "again.csv"))
    head = [row[0].strip("`") for row in tables(newcomer.PAGE)["New rows"][1:]]
    assert list(found)[:2] + list(found)[-1:] == [head[0], head[1], head[-1]]
    assert [f"probability_{k}" for k in newcomer.SPECIES] == list(found)[2:-1]
    page = text(newcomer.PAGE)
    assert page.split("```\n")[1].splitlines()[0] == (tmp_path / "my" / "pets.csv").read_text().splitlines()[0]


def test_the_data_yaml_table_is_the_config():
    rows = [
        (f"`{name}`", "required" if field.is_required() else written_whole(field.default), field.description)
        for name, field in DataConfig.model_fields.items()
    ]
    assert first_columns(tables(newcomer.PAGE)["data.yaml"]) == rows


def written_whole(value: Any) -> str:
    return written(list(value) if isinstance(value, tuple) else value)


def test_links_lead_somewhere():
    for page in PAGES:
        prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(([^)#:]+)?(?:#([^)]*))?\)", prose):
            path = (page.parent / target[0]).resolve() if target[0] else page
            assert path.is_file(), f"{page.name}: {target[0]}"
            if path.suffix != ".md":
                assert not target[1], f"{page.name}: {target[0]} has no headings"
                continue
            titles = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
            assert not target[1] or target[1] in anchors, f"{page.name}: {target[0]}#{target[1]}"


# What the tables say


def values(annotation: Any, metadata: Any = ()) -> str:
    """How a table writes what an option may be."""
    if get_origin(annotation) in (Union, UnionType):
        kinds = [values(a, metadata) for a in get_args(annotation) if a is not type(None)]
        return ", ".join(kinds) + (" or `null`" if type(None) in get_args(annotation) else "")
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(annotation))
    name = {int: "integer", float: "number", str: "text", bool: "`true`, `false`"}.get(annotation, "mapping")
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {getattr(m, word):g}" for m in metadata for word, sign in signs.items() if hasattr(m, word)]
    return " ".join([name, *([", ".join(bounds)] if bounds else [])])


def option_rows(options: type[BaseModel], prefix: str = "") -> list[tuple[str, str, str]]:
    """(`key`, values, `default`) of every option, sections by dotted keys."""
    rows = []
    for name, field in options.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            default = field.get_default(call_default_factory=True)
            for key, of, shown in option_rows(kind, f"{prefix}{name}."):
                leaf = key.strip("`").removeprefix(f"{prefix}{name}.")
                rows.append((key, of, written(getattr(default, leaf)) if hasattr(default, leaf) else shown))
        else:
            default = "required" if field.is_required() else written(field.get_default(call_default_factory=True))
            rows.append((f"`{prefix}{name}`", values(kind, field.metadata), default))
    return rows


def written(value: Any) -> str:
    return f"`{yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}`"


def tables(name: str) -> dict[str, list[list[str]]]:
    """The tables of a page by the heading above them: rows of cells, the header first."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in text(name).splitlines():
        if line.startswith("#"):
            title = line.lstrip("# ")
        elif line.startswith("|") and not line.startswith("|---"):
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def first_columns(table: list[list[str]], count: int = 3) -> list[tuple[str, ...]]:
    return [tuple(row[:count]) for row in table[1:]]


def test_the_config_table_is_the_config():
    assert first_columns(tables("docs/fit.md")["All keys"]) == option_rows(Config)


def test_the_tuning_table_is_its_config():
    rows = [row for row in option_rows(TuneConfig) if not row[0].startswith("`base.")]
    assert first_columns(tables("docs/tune.md")["All keys"]) == [("`base`", "mapping or path", "required"), *rows]


def test_the_resampler_table_is_the_options():
    table = tables("docs/valuation.md")["Options"]
    shown = {
        name: [tuple(row[1:4]) for row in table[1:] if name in re.findall(r"\w+", row[0])] for name in valuation.names()
    }
    assert shown == {name: option_rows(valuation.resampler_class(name).Options) for name in valuation.names()}


@pytest.mark.parametrize("name", balancers.names())
def test_every_balancer_has_a_card_with_its_options(name):
    card = f"docs/methods/{name}.md"
    assert text(card).startswith(f"# {name}\n")
    assert first_columns(tables(card).get("Options", [[]])) == option_rows(REGISTRY[name].Options)


def test_every_balancer_is_on_the_page_of_methods_with_its_family_and_passes():
    page = tables("docs/methods/README.md")
    assert set(page) == {family.capitalize() for family in get_args(Family)}
    shown = {row[0]: (title.lower(), row[2]) for title, rows in page.items() for row in rows[1:]}
    made = {name: balancers.get(name) for name in balancers.names()}
    assert shown == {
        f"[{name}]({name}.md)": (b.family, ", ".join(str(b.backward_passes(m)) for m in (2, 3)))
        for name, b in made.items()
    }
    for name in PLANNED:
        assert f"\n- `{name}` (" in text("docs/methods/README.md")


def test_every_card_is_of_a_balancer():
    assert sorted(card.stem for card in CARDS.glob("*.md") if card.stem != "README") == balancers.names()


def test_the_hooks_tables_are_the_contract():
    page, contract = tables("docs/balanced-step.md"), vars(balancers.Balancer)
    hooks = [n for n, v in contract.items() if inspect.isfunction(v) and not n.startswith("_")]
    assert [row[0] for row in page["Hooks"][1:]] == [f"`{n}`" for n in hooks]
    said = [
        (f"`{n}`", f"`{v!r}`".replace("'", '"'))
        for n, v in contract.items()
        if not callable(v) and not isinstance(v, property) and n[0] != "_"
    ]
    assert first_columns(page["Said of the class"], 2) == said


def test_the_context_table_is_the_context():
    source = inspect.getsource(balancers.StepContext.__init__)
    there = {n for n in vars(balancers.StepContext) if not n.startswith("_")}
    there |= {"outputs", *re.findall(r"self\.([a-z]\w*)(?::[^=]+)? =", source)}
    rows = tables("docs/balanced-step.md")["What a hook may ask"][1:]
    assert {n for row in rows for n in re.findall(r"`(\w+)", row[0])} == there


def test_the_store_table_is_the_schema():
    info = valuation.StoreInfo(("audio",), "classification", False, "feature", "", "", "train", "best")
    schema = valuation.store_schema(info)
    rows = [
        (row[0].strip("`").replace("<modality>", "audio"), row[1].split(";")[0])
        for row in tables("docs/valuation.md")["The store"][1:]
    ]
    assert rows == [(f.name, str(f.type).replace("double", "float64")) for f in schema]
    said = re.search(
        r"^The metadata of every file.*?values of: (.*?)\. ", text("docs/valuation.md"), re.DOTALL | re.MULTILINE
    )
    assert said is not None
    assert re.findall(r"`(\w+)`", said[1]) == list(valuation.StoreInfo.__dataclass_fields__)


def test_the_data_tables_are_the_data_sets():
    page = tables("docs/data.md")
    assert [row[0] for row in page["Data sets"][1:]] == [f"`{name}`" for name in sources.names()]
    options = {name: sources.options_of(name) for name in sources.names()}
    assert first_columns(page["Options"]) == [
        (f"`{name}`", f"`{option}`", written(list(default) if isinstance(default, tuple) else default))
        for name, known in options.items()
        for option, default in known.items()
        if option != "seed"
    ]
    # What the table tells to install is what `prepare` tells where it is missing.
    for name, *_, install in page["Data sets"][2:]:
        module = name.strip("`").replace("-", "_")
        if install == "nothing":
            continue
        assert install.strip("`") in (REPO / "datasets" / "sources" / f"{module}.py").read_text(), name
    assert [row[0].strip("`") for row in page["Kinds of modality"][1:]] == list(get_args(Kind))


# What the trouble table says


def bad_rows(folder: Path, column: list[Any] | pa.Array, labels: Any = (0, 1) * 20) -> Any:
    def tried() -> None:
        path = folder / "bad.parquet"
        ids = [f"r{i}" for i in range(40)]
        pq.write_table(pa.table({"source_id": ids, "target": list(labels), "a": column}), path)
        prepare(path, folder / "bad", modalities=[Modality(name="a", shape=(2,))], task_labels=["no", "yes"])

    return tried


def exploded() -> None:
    model = LateFusion({"a": MLP(2)}, num_classes=2)
    balancer, optimizer = balancers.get("joint"), torch.optim.SGD(model.parameters(), lr=0.1)
    made = balancers.BalancedStep(model, Classification(2), balancer, optimizer)
    ids, present = torch.arange(3), torch.ones(3, 1, dtype=torch.bool)
    inputs = {"a": torch.full((3, 2), torch.inf)}
    made({"sample_id": ids, "copy": 0 * ids, "inputs": inputs, "present": present, "target": 0 * ids})


def test_the_sentences_in_the_trouble_table_are_said(folder):
    base = {"data": str(folder / "data" / "digits"), "out": str(folder / "runs" / "new"), "max_steps": 10}
    run = Run.open(folder / "runs" / "digits")
    plain = [[1.0, 2.0]] * 40
    said = [
        lambda: load_config({**base, "batchsize": 3}),
        lambda: load_config({**base, "balancer": "omg"}),
        lambda: load_config({**base, "resampler": {"name": "sample", "options": {"warm": 1}}}),
        lambda: load_config({**base, "max_steps": None}),
        lambda: fit(base, data=str(folder / "nowhere")),
        lambda: fit(base, out=str(run.path)),
        lambda: fit(base, out=str(folder / "my")),
        lambda: fit(base, batch_size=2, workers=3),
        exploded,
        bad_rows(folder, [*plain[:39], [0.0, float("nan")]]),
        bad_rows(folder, plain, [7, *[0, 1] * 19, 1]),
        bad_rows(folder, [*plain[:39], None]),
        bad_rows(folder, [*plain[:38], None, None]),
        bad_rows(folder, pa.array([bytes(16)] * 40, pa.uuid())),
        lambda: run.values("train", 7),
        lambda: valuation.read_values(run.values_folder("train", "best"), {"model_hash": "another"}),
    ]
    rows = [row[0] for row in tables("docs/fit.md")["Trouble"][1:]]
    seen = set()
    for trigger in said:
        with pytest.raises(EquipoiseError) as caught:
            trigger()
        told = [row for row in rows if re.match(".*?".join(map(re.escape, row.split("..."))), str(caught.value))]
        assert len(told) == 1, f"{caught.value}: {told}"
        seen.add(told[0])
    # What only a run on Ray can say is at least in its source; the tests of `fit` raise it.
    source = " ".join(path.read_text() for path in sorted((REPO / "pipelines").rglob("*.py")))
    for row in set(rows) - seen:
        assert max((part.strip() for part in row.split("...")), key=len) in source, row
