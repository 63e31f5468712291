"""Who imports whom, what the folder named datasets does to Hugging Face's, and what a wheel holds."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import jsonschema
import pytest
import yaml

import equipoise

REPO = Path(equipoise.__file__).parents[1]
ROOMS = equipoise.ROOMS
SITE = Path(sysconfig.get_path("purelib"))


def python(code, *, cwd=REPO, site=None, **env):
    """What `python -c code` in a folder prints last, read as JSON. `site`: these packages instead of the installed ones."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    # -S: no site-packages, and no .pth file (such as that of an editable install).
    flags = ["-S"] if site else []
    kept |= {"PYTHONPATH": str(site)} if site else {}
    done = subprocess.run(
        [sys.executable, *flags, "-c", code],
        cwd=cwd,
        env={**kept, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# The import graph


def lint_imports(cwd):
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    env = {**os.environ, "PYTHONPATH": str(cwd)}
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def copied(folder):
    """A copy of the sources, links as links."""
    folder.mkdir()
    for name in (*ROOMS, "equipoise"):
        shutil.copytree(REPO / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE", "README.md"):
        if (REPO / name).exists():
            shutil.copy(REPO / name, folder)
    return folder


def test_the_import_contracts_hold():
    done = lint_imports(REPO)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 kept, 0 broken" in done.stdout


def test_the_import_contracts_would_notice(tmp_path):
    folder = copied(tmp_path / "copy")
    (folder / "balancers" / "planted.py").write_text("from ray import train\n")
    (folder / "models" / "planted.py").write_text("from equipoise.pipelines import config\n")
    done = lint_imports(folder)
    assert done.returncode == 1
    assert "0 kept, 2 broken" in done.stdout
    for line in ("equipoise.balancers.planted -> ray", "equipoise.models.planted -> equipoise.pipelines.config"):
        assert line in done.stdout


def test_the_rooms_below_never_import_ray():
    loaded = python(
        """if True:
        import importlib, json, pkgutil, sys
        import equipoise
        bare = {"torch", "ray", "pydantic"} & set(sys.modules)
        import equipoise.models.modality
        light = {"torch", "ray"} & set(sys.modules)
        found = []
        for room in ("balancers", "valuation", "models", "tune_spaces"):
            package = importlib.import_module(f"equipoise.{room}")
            for module in pkgutil.walk_packages(package.__path__, f"equipoise.{room}."):
                found.append(importlib.import_module(module.name).__name__)
        print(json.dumps([sorted(bare), sorted(light), found, "ray" in sys.modules]))
        """
    )
    bare, light, found, ray = loaded
    assert bare == [], "`import equipoise` loads nothing"
    assert light == [], "a data worker that reads modalities needs no torch"
    assert {"equipoise.balancers.step", "equipoise.valuation.store", "equipoise.models.late_fusion"} <= set(found)
    assert not ray


def test_a_process_of_a_run_begins_without_what_few_of_them_need():
    # A run is ten processes of which two measure: each second here is ten of a core.
    loaded = python(
        """if True:
        import json, sys
        import equipoise.cli, equipoise.pipelines.fit
        import equipoise.pipelines.batches, equipoise.pipelines.train_loop, equipoise.pipelines.valuer
        print(json.dumps(sorted({"torchmetrics", "scipy", "pandas", "transformers", "matplotlib", "ray"} & set(sys.modules))))
        """
    )
    assert loaded == []


def test_a_checkout_that_lost_its_links_says_so(tmp_path):
    package = tmp_path / "equipoise"
    package.mkdir()
    shutil.copy(REPO / "equipoise" / "__init__.py", package)
    (package / "balancers").write_text("../balancers")  # what git writes where it may not make links
    spec = importlib.util.spec_from_file_location("planted", package / "__init__.py")
    with pytest.raises(ImportError, match=r"equipoise/balancers is a plain file, .*git clone -c core.symlinks=true"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


# The folder named datasets

TRAINER = """if True:
    import json, os, sys, tempfile
    found = {}
    try:
        import datasets
        found["datasets"] = [getattr(datasets, "__file__", None), *map(os.path.realpath, datasets.__path__)]
    except ImportError as error:
        found["datasets"] = str(error)
    from transformers.utils import is_datasets_available
    found["available"] = is_datasets_available()
    if TRAIN:
        import torch
        from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

        size = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        model = BertForSequenceClassification(BertConfig(vocab_size=20, max_position_embeddings=8, **size))
        rows = [{"input_ids": torch.tensor([1, 2, 3]), "labels": torch.tensor(i % 2)} for i in range(4)]
        with tempfile.TemporaryDirectory() as out:
            quiet = dict(report_to=[], disable_tqdm=True, save_strategy="no", use_cpu=True)
            try:
                trainer = Trainer(model, TrainingArguments(out, max_steps=1, **quiet), train_dataset=rows)
                found["steps"] = trainer.train().global_step
            except Exception as error:
                found["steps"] = f"{type(error).__name__}: {error}"
    if EQUIPOISE:
        import equipoise.balancers
        found["balancers"] = equipoise.balancers.names()
    print(json.dumps(found))
    """


def hugging_face(train=True, equipoise=False, **where):
    pytest.importorskip("accelerate", reason="transformers.Trainer needs it")
    return python(TRAINER.replace("if TRAIN:", f"if {train}:").replace("if EQUIPOISE:", f"if {equipoise}:"), **where)


@pytest.fixture(scope="module")
def site_without_datasets(tmp_path_factory):
    """The installed packages, link by link, without Hugging Face datasets and its metadata."""
    site = tmp_path_factory.mktemp("site")
    for entry in SITE.iterdir():
        if entry.name != "datasets" and not entry.name.startswith("datasets-") and "equipoise" not in entry.name:
            (site / entry.name).symlink_to(entry)
    return site


def test_from_the_repository_root_datasets_is_hugging_face_s():
    # A regular package anywhere on the path beats a folder without __init__.py, even one that comes first.
    assert not (REPO / "datasets" / "__init__.py").exists()
    found = hugging_face()
    assert found["datasets"][0] == str(SITE / "datasets" / "__init__.py")
    assert found["available"]
    assert found["steps"] == 1


def test_without_hugging_face_datasets_the_folder_is_taken_for_them_and_trainer_dies(site_without_datasets):
    # Why Hugging Face datasets is a dependency although we never call it. Where it is missing and the repository root is
    # on the path (`python -c`, `python -m`, a notebook there), `import datasets` gives our folder as an empty namespace
    # package; transformers asks importlib.util.find_spec("datasets"), takes it for the library, and Trainer fails at its
    # first batch. Equipoise works there all the same. Should this test fail because Trainer trains, transformers looks
    # closer by now, and the dependency can go.
    found = hugging_face(equipoise=True, site=site_without_datasets)
    assert found["datasets"] == [None, str(REPO / "datasets")]
    assert found["available"] is True
    assert found["steps"] == "AttributeError: module 'datasets' has no attribute 'Dataset'"
    assert "ogm" in found["balancers"]


def test_without_hugging_face_datasets_and_away_from_the_root_nothing_is_mistaken(site_without_datasets, tmp_path):
    found = hugging_face(train=False, site=site_without_datasets, cwd=tmp_path)
    assert found["datasets"] == "No module named 'datasets'"
    assert found["available"] is False


def test_hugging_face_datasets_is_a_dependency():
    import tomllib

    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    assert any(dependency.startswith("datasets") for dependency in project["dependencies"])


# Packaging


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    pytest.importorskip("setuptools", minversion="77", reason="builds a wheel without network")
    folder = tmp_path_factory.mktemp("wheel")
    flags = ["-q", "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "wheel", *flags, "-w", str(folder), str(copied(folder / "copy"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    [path] = folder.glob("*.whl")
    return path


def test_a_wheel_holds_the_rooms_as_real_files_under_equipoise(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    expected = {
        f"equipoise/{path.relative_to(REPO)}": path.read_bytes()
        for room in ROOMS
        for path in (REPO / room).rglob("*.py")
        if "__pycache__" not in path.parts
    }
    assert "equipoise/balancers/joint.py" in expected
    assert "equipoise/datasets/sources/digits.py" in expected
    missing = {name for name, content in expected.items() if found.get(name) != content}
    assert not missing
    assert "equipoise/py.typed" in found
    tops = {name.split("/")[0] for name in found}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"equipoise"}, "no bare `datasets` is installed"


def test_a_wheel_holds_what_the_rooms_read_beside_their_code(wheel):
    # Data files, such as search spaces, are read from the package's own folder.
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    for room in ROOMS:
        for path in (REPO / room).rglob("*"):
            if path.is_file() and path.suffix in (".yaml", ".yml", ".json", ".toml", ".html", ".css", ".js"):
                assert f"equipoise/{path.relative_to(REPO)}" in found


def test_an_installed_wheel_needs_no_checkout(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    found = python(
        "import json, equipoise.datasets.manifest as m; print(json.dumps([m.__file__, m.Modality.__module__]))",
        cwd=tmp_path,
        PYTHONPATH=str(tmp_path / "site"),
    )
    assert found == [str(tmp_path / "site" / "equipoise" / "datasets" / "manifest.py"), "equipoise.models.modality"]


# The cluster


def ray_schema():
    root = Path(importlib.util.find_spec("ray").submodule_search_locations[0])
    return json.loads((root / "autoscaler" / "ray-schema.json").read_text())


def test_cluster_yaml_is_what_ray_s_launcher_reads():
    cluster = yaml.safe_load((REPO / "cluster.yaml").read_text())
    jsonschema.validate(cluster, ray_schema())
    assert cluster["head_node_type"] in cluster["available_node_types"]
    assert "InstanceMarketOptions" not in str(cluster["available_node_types"][cluster["head_node_type"]])
    [copied_to] = [to for to, here in cluster["file_mounts"].items() if here == "."]
    assert any(copied_to in command for command in cluster["setup_commands"])
    assert (REPO / "constraints.txt").is_file(), "read by setup_commands"


@pytest.mark.parametrize("change", [{"max_worker": 4}, {"max_workers": "4"}, {"available_node_types": {"head": 1}}])
def test_the_schema_would_notice(change):
    cluster = yaml.safe_load((REPO / "cluster.yaml").read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**cluster, **change}, ray_schema())
