import os
import sys
from pathlib import Path

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import pytest  # noqa: E402
import torch  # noqa: E402
from digits_runs import CONFIG, start_cluster  # noqa: E402
from gloo_pool import GlooPool  # noqa: E402

import equipoise  # noqa: E402
from equipoise.datasets.prepare import prepare  # noqa: E402

# Tiny operations with two threads on a busy machine spend their time waiting for each other.
torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config, items):
    """With two processes (`make test`): one Ray in one of them, one pool of gloo workers in one of them, a file in one.

    A file's tests without Ray are apart from those with it: the latter are half of the time.
    """
    if not config.pluginmanager.hasplugin("xdist"):
        return
    pools = {item.path for item in items if "gloo" in getattr(item, "fixturenames", ())}
    for item in items:
        ray = item.get_closest_marker("ray") or "ray_cluster" in getattr(item, "fixturenames", ())
        group = "ray" if ray else "gloo" if item.path in pools else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish(session):
    """pytest 9.2 and xdist 3.8 do not understand each other: without a word every process would start a Ray and a pool."""
    if session.config.getoption("loadgroup", False):  # in a worker of xdist
        assert all("@" in item.nodeid for item in session.items), "xdist does not know the groups: install pytest < 9.2"


@pytest.fixture(scope="session")
def gloo():
    pool = GlooPool()
    yield pool
    pool.close()


class Faults:
    """Flag files that `ray_faults` looks for in Ray's worker processes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on(self, *names: str) -> None:
        for name in names:
            (self.folder / name).touch()

    def off(self) -> None:
        for flag in self.folder.iterdir():
            flag.unlink()


@pytest.fixture(scope="session")
def ray_cluster(tmp_path_factory):
    """One Ray for all tests that need it; its worker processes can be told to be slow."""
    import ray

    folder = tmp_path_factory.mktemp("faults")
    start_cluster(folder)
    yield Faults(folder)
    ray.shutdown()


@pytest.fixture
def faults(ray_cluster):
    yield ray_cluster
    ray_cluster.off()


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    # 1,257 train rows in chunks of 100: nothing is divisible by anything nice, and there are two windows.
    root = tmp_path_factory.mktemp("digits") / "data"
    prepare("digits", root, chunk_rows=100, shard_rows=400)
    return str(root)


@pytest.fixture(scope="session")
def plain(ray_cluster, data, tmp_path_factory):
    """The undisturbed run that the others are compared with."""
    return equipoise.fit(CONFIG, data=data, out=str(tmp_path_factory.mktemp("runs") / "plain"))
