"""`equipoise doctor`: its real output, and planted faults."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

import equipoise
from equipoise import EquipoiseError
from equipoise.datasets.prepare import prepare
from equipoise.pipelines import installation, machine
from equipoise.pipelines.config import load_config
from equipoise.pipelines.doctor import doctor, ray_state, sessions, the_run, usage_statistics
from equipoise.pipelines.findings import Finding, show
from equipoise.pipelines.preflight import concerns, disk_concerns
from equipoise.pipelines.run import write_config
from equipoise.pipelines.seats import Node, Resources, take_seats

REPO = Path(equipoise.__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("digits") / "data"
    prepare("digits", root, chunk_rows=100, shard_rows=400)
    return root


@pytest.fixture
def asked(data, tmp_path):
    """A configuration file of a run that could start."""
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump({"data": str(data), "out": str(tmp_path / "out"), "max_steps": 10, "tracker": "none"})
    )
    return path


def here(cores=2, gpus=0, **more):
    return Resources((Node("here", cores, gpus, **more),), tuple(range(cores)))


def findings(path, *overrides, resources=None, verify=False):
    lines, _ = the_run(path, list(overrides), resources or here(), verify)
    return {line.what: line for line in lines}


def command(*arguments, cwd, **env):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.run(
        [sys.executable, "-m", "equipoise.cli", "doctor", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(REPO), "COLUMNS": "80", **env},
    )


def test_a_run_that_could_start_is_said_to_be_fine_and_no_ray_is_started(asked, tmp_path):
    done = command(asked, "workers=3", cwd=tmp_path, RAY_TMPDIR=str(tmp_path / "rays"))
    assert done.returncode == 0, done.stdout + done.stderr
    out = done.stdout
    assert all(len(line) <= 80 for line in out.splitlines())
    for title in ("Installation", "Optional", "This machine", "Ray", "The run of ", "Who sits where"):
        assert f"\n{title}" in f"\n{out}"
    assert "wrong" not in out.replace("nothing is wrong", "")
    told = " ".join(out.split())
    assert "data set 1257 train, 270 validation, 270 test rows" in told
    assert f"runfolder{tmp_path / 'out'}:new" in "".join(out.split())
    rows = {
        row.split("│")[1].strip(): [cell.strip() for cell in row.split("│")[2:-1]]
        for row in out.splitlines()
        if "│" in row
    }
    cores = len(machine.cores())
    cpus = max(cores, 6)
    assert rows["training workers"] == ["3", "1", "0", str(max(1, cores // 3)), "any"]
    assert rows["valuation actors"] == ["1", "1", "0", str(max(1, cores // 3)), "any"]
    assert rows["data tasks, at most"][0] == str(3 * max(1, (cpus - 4) // 3))
    assert f"Ray starts here with {cpus} logical CPUs" in out
    assert "0 old sessions" in told
    assert not (tmp_path / "rays").exists()
    assert not (tmp_path / "out").exists()


def test_something_wrong_ends_with_status_1_and_is_named_in_the_last_line(asked, tmp_path):
    done = command(asked, "data=nowhere", cwd=tmp_path, RAY_ADDRESS="127.0.0.1:9")
    assert done.returncode == 1
    told = " ".join(done.stdout.split())
    assert "is not a prepared data set: it has no manifest.json. Run `equipoise prepare`." in told
    assert (
        "wrong cluster No Ray answers at RAY_ADDRESS=127.0.0.1:9 ([Errno 111] Connection refused): start it there"
        in told
    )
    assert "look seats Not known without the cluster." in told
    assert done.stdout.splitlines()[-1] == "wrong: cluster, data set; to look at: seats"


def test_a_bad_configuration_is_a_line(asked, tmp_path):
    assert findings(asked, "batchsize=3")["configuration"] == Finding(
        "wrong", "configuration", f"Unknown config key 'batchsize' in {asked}: did you mean 'batch_size'?"
    )
    assert "No configuration at" in findings(tmp_path / "none.yaml")["configuration"].found


# The same sentences as `fit`, from the same code.


def taken(out):
    write_config(out / "config.yaml", load_config({"data": "elsewhere", "out": str(out), "max_steps": 10, "seed": 7}))


def full(out):
    (out / "letter.txt").write_text("dear")


REFUSED = [
    ("run folder", taken, (), r"holds a run of another configuration \(.*seed: 7 -> 0.*\): choose another out="),
    ("run folder", full, (), r"is not empty and holds no run: choose another out="),
    ("methods", None, ("batch_size=2", "workers=3"), r"batch_size=2 .* cannot be shared by 3 workers"),
    (
        "methods",
        None,
        ("resampler=sample", "resampler.options.max_entries=5"),
        r"max_entries=5 is less than the 1257 rows",
    ),
    ("seats", None, ("device=cuda",), r"device=cuda needs a GPU a worker: there are 0, and workers=1\."),
    ("data set", None, ("data=nowhere",), r"nowhere is not a prepared data set"),
]


@pytest.mark.parametrize(("what", "plant", "overrides", "sentence"), REFUSED)
def test_doctor_says_what_fit_says(asked, tmp_path, what, plant, overrides, sentence):
    if plant is not None:
        (tmp_path / "out").mkdir()
        plant(tmp_path / "out")
    found = findings(asked, *overrides)[what]
    assert found.mark == "wrong"
    with pytest.raises(EquipoiseError, match=sentence) as caught:
        equipoise.fit(asked, *overrides)
    assert found.found == str(caught.value)


def test_every_check_is_made_even_where_one_fails(asked):
    found = findings(asked, "batch_size=2", "workers=3", "device=cuda")
    assert [what for what, line in found.items() if line.mark == "wrong"] == ["methods", "seats"]


# The data set


def test_a_shard_that_is_missing_cut_short_or_another_is_found(asked, data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    shard, other = broken / "train-00000.parquet", broken / "train-00003.parquet"
    whole = shard.read_bytes()
    shutil.copy(other, shard)
    assert "train-00000.parquet holds 57 rows, and its manifest says 400" in found_in(asked, broken)
    shard.write_bytes(whole[:-100])
    assert "train-00000.parquet" in found_in(asked, broken)
    shard.unlink()
    assert "No Parquet file at" in found_in(asked, broken)


def test_a_changed_byte_is_found_where_every_byte_is_read(asked, data, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(data, broken)
    shard = broken / "train-00001.parquet"
    changed = bytearray(shard.read_bytes())
    changed[2000] ^= 1
    shard.write_bytes(changed)
    assert findings(asked, f"data={broken}")["data set"].mark == "ok"
    found = findings(asked, f"data={broken}", verify=True)["data set"]
    assert found.mark == "wrong"
    assert "train-00001.parquet is missing or was changed since it was prepared" in found.found
    assert "every byte compared" in findings(asked, verify=True)["data set"].found


def found_in(asked, folder):
    line = findings(asked, f"data={folder}")["data set"]
    assert line.mark == "wrong"
    return line.found


def test_an_unfinished_and_a_finished_run_are_told_apart(asked, tmp_path):
    out = tmp_path / "out"
    write_config(out / "config.yaml", load_config(asked, {"data": load_config(asked).data, "out": str(out.resolve())}))
    assert "unfinished: the run goes on" in findings(asked)["run folder"].found
    (out / "finished.json").write_text("{}")
    assert "finished: its result is printed" in findings(asked)["run folder"].found


# Estimates: a run is never refused for them.


def test_estimates_are_looked_at(asked, data):
    def said(resources, *overrides):
        config = load_config(asked, list(overrides))
        manifest = equipoise.datasets.manifest.Manifest.load(data)
        found = concerns(config, manifest, resources, take_seats(config, resources))
        return " ".join(f"{c.what} {c.do}" for c in found)

    # digits: two modalities of 32 float32, 256 bytes a row; two windows of 800 rows are 400 KiB.
    assert "Two decoded windows of data for each of workers=1 are 400 KiB" in said(here(object_store=409_599))
    assert said(here(object_store=409_600, memory=1 << 40)) == ""
    assert said(here()) == "", "nothing is said of sizes that are not known"
    # The default optimiser is AdamW; what a worker of Ray warns of is not shown.
    assert said(here(), "balancer=ogm") == (
        "Balancer 'ogm' scales gradients (apply='gradient'), and AdamW divides a factor that changes slowly out of them again, "
        "so that little is left of the scaling. Use apply='update' (balancer.options.apply=update), which scales what the "
        "optimiser did, or an optimiser such as SGD."
    )
    assert said(here(), "balancer=ogm", "balancer.options.apply=update") == ""
    assert said(here(), "balancer=ogm", "optimizer.name=sgd") == ""
    # A worker, an actor and two data tasks of 400 MiB, and the windows: 1,638,400 KiB + 400 KiB.
    assert "take about 1.6 GiB of memory" in said(here(memory=1600 << 20))
    assert said(here(memory=1601 << 20)) == ""
    idle = said(here(), "valuation.placement=separate")
    assert "the actors' seats are idle while the workers train" in idle
    assert said(here(), "valuation.placement=separate", "valuation.lag=1") == ""
    assert findings(asked, resources=here(object_store=1))["estimate"].mark == "look"


@pytest.fixture
def small_disk(tmp_path):
    where = tmp_path / "disk"
    where.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(where)], capture_output=True, text=True
        )
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk_is_seen(small_disk, monkeypatch, asked):
    assert disk_concerns(small_disk / "runs" / "not" / "there") == []
    (small_disk / "much").write_bytes(bytes(1_000_000))
    [concern] = disk_concerns(small_disk / "runs" / "not" / "there")
    assert "is 96 % full, 44.0 KiB are free: checkpoints may fail" in concern.what
    monkeypatch.setenv("RAY_TMPDIR", str(small_disk))
    [concern] = disk_concerns(Path())
    assert "The disk of the spilled data of Ray" in concern.what
    assert findings(asked)["estimate"].found == concern.what


# The installation


def test_a_package_outside_its_range_and_one_that_is_missing_are_wrong(monkeypatch):
    real = importlib.metadata.version

    def planted(name):
        if name == "pandas":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.26.4" if name == "numpy" else real(name)

    monkeypatch.setattr(importlib.metadata, "version", planted)
    fine, *wrong = installation.packages()
    assert {(line.mark, line.what, line.found, line.do) for line in wrong} == {
        ("wrong", "numpy", "1.26.4 is installed, Equipoise needs >=2.", "Run `pip install 'numpy>=2'`"),
        ("wrong", "pandas", "is not installed, Equipoise needs >=2.2.", "Run `pip install 'pandas>=2.2'`"),
    }
    assert fine.found.startswith(f"{len(installed()) - 2} in range; ray 2.60")


def installed():
    return [text for text in importlib.metadata.requires("equipoise") if "extra ==" not in text]


def test_versions_that_were_not_tested_are_named(tmp_path):
    torch = importlib.metadata.version("torch").split("+")[0]
    pinned = f"torch=={torch}\npillow==0.0.1  # old\nray[default]=={importlib.metadata.version('ray')}\n"
    (tmp_path / "constraints.txt").write_text(pinned)
    [line] = installation.pins(tmp_path / "constraints.txt")
    assert (line.mark, line.found) == (
        "look",
        f"other versions: pillow {importlib.metadata.version('pillow')} (tested: 0.0.1).",
    )
    (tmp_path / "constraints.txt").write_text(f"torch=={torch}\n")
    assert [line.mark for line in installation.pins(tmp_path / "constraints.txt")] == ["ok"]
    assert installation.pins(tmp_path / "none.txt") == []


def test_links_that_are_broken_are_wrong(tmp_path):
    package = tmp_path / "equipoise"
    package.mkdir()
    for room in equipoise.ROOMS:
        (tmp_path / room).mkdir()
        (package / room).symlink_to(f"../{room}")
    assert installation.links(package).mark == "ok"
    last = package / equipoise.ROOMS[-1]

    def said():
        line = installation.links(package)
        assert line.mark == "wrong"
        assert line.do
        return line.found

    last.unlink()
    last.symlink_to("../gone")
    assert said() == f"equipoise/{last.name} is a link to ../gone, which is not there."
    last.unlink()
    assert said() == f"equipoise/{last.name} is not there."
    last.write_text(f"../{last.name}")
    assert said() == f"equipoise/{last.name} is a plain file, not a link."
    last.unlink()
    last.symlink_to("../models")
    assert "leads to" in said()


def test_a_folder_named_datasets_is_not_taken_for_hugging_face_s(tmp_path, monkeypatch):
    assert installation.hugging_face().mark == "ok"
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "datasets", raising=False)
    assert "Hugging Face's package is missing" in installation.hugging_face().found
    (tmp_path / "datasets").mkdir()
    importlib.invalidate_caches()
    found = installation.hugging_face()
    assert found.mark == "wrong"
    assert f"is shadowed by {tmp_path / 'datasets'}" in found.found


def test_what_is_optional_is_never_wrong(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)  # as if it were not installed
    lines = installation.optional()
    assert {line.mark for line in lines} == {"ok"}
    [mlflow] = [line for line in lines if line.what == "mlflow"]
    assert "optional, not here. tracker=mlflow needs the package" in mlflow.found
    assert "digits" in lines[0].found


def test_a_tracker_that_is_asked_for_must_be_there(asked, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    assert findings(asked, "tracker=mlflow")["tracker"].mark == "wrong"


# Ray


def test_old_sessions_are_counted(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    for name in ("session_2026-01-01_a", "session_2026-01-02_b"):
        (tmp_path / "ray" / name / "logs").mkdir(parents=True)
        (tmp_path / "ray" / name / "logs" / "gcs.out").write_bytes(bytes(1024))
    (tmp_path / "ray" / "session_latest").symlink_to("session_2026-01-02_b")
    assert "2 old sessions in" in sessions().found
    assert "2.0 KiB" in sessions().found
    assert machine.sessions(tmp_path / "ray").old_bytes == 2048


def test_usage_statistics_that_were_switched_on_are_looked_at(monkeypatch):
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    assert usage_statistics().mark == "look"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    assert usage_statistics().mark == "ok"


@pytest.mark.ray
def test_the_cluster_is_shown_as_it_is(ray_cluster, asked):
    out = StringIO()
    console = Console(file=out, width=80)
    assert doctor(asked, ["workers=3"], console)
    told = " ".join(out.getvalue().split())
    assert "1 nodes" in told
    assert "6 CPUs, 0 GPUs" in told
    assert "On the nodes" in told
    assert "running (gcs_server" in told
    assert not doctor(asked, ["workers=6"], console)
    told = " ".join(out.getvalue().split())
    assert "wrong seats The Ray cluster has 6 CPUs, but workers=6, actors=1 and one data task need 8" in told
    resources, _ = ray_state()
    assert resources is not None
    assert resources.cluster
    assert resources.nodes[0].object_store > 0


def test_lines_show_brackets_as_they_are():
    out = StringIO()
    show(Console(file=out, width=80), "Title", [Finding("wrong", "x", "found [red]this[/red]", "do [bold]that")])
    assert "found [red]this[/red]" in out.getvalue()
    assert "do [bold]that" in out.getvalue()
