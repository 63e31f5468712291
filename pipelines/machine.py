"""This machine as far as a run depends on it: cores, memory, disks, and what earlier Rays left behind."""

from __future__ import annotations

import math
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

SHM = Path("/dev/shm")
#: Of the memory that is free, what Ray gives its object store where nobody says otherwise.
STORE_SHARE = 0.3
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB")


def cores() -> tuple[int, ...]:
    """The cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return tuple(sorted(os.sched_getaffinity(0)))
    return tuple(range(os.cpu_count() or 1))


def processor() -> str:
    """The processor's name, as far as the system tells."""
    if Path("/proc/cpuinfo").exists():
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def free_memory() -> int:
    """Bytes, of this machine or of the container that this process is in, whichever is less."""
    free: int = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
        # Pages of files count as used there, and are given back when they are wanted.
        cached = int((group / "memory.stat").read_text().split("inactive_file ")[1].split()[0])
    except (OSError, ValueError, IndexError):
        return free
    return free if limit == "max" else min(free, max(0, int(limit) - used + cached))


def store_bytes() -> int:
    """About as large as the object store will be that Ray starts here."""
    return int(min(STORE_SHARE * free_memory(), shutil.disk_usage(SHM).free if SHM.is_dir() else float("inf")))


def ray_folder() -> Path:
    """Where Ray keeps its sessions, and spills what its object store cannot hold."""
    return Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray"


@dataclass(frozen=True)
class Disk:
    """The disk that a path lies on, or will lie on; bytes, and the share that is used."""

    free: int
    used: float


def disk(path: Path) -> Disk:
    path = path.absolute()
    while not path.exists():
        path = path.parent
    usage = shutil.disk_usage(path)
    return Disk(usage.free, 1 - usage.free / usage.total)


@dataclass(frozen=True)
class Sessions:
    """Ray's sessions on this machine: how many folders no Ray uses any more, their bytes, and the processes of Rays that run."""

    old: int
    old_bytes: int
    running: tuple[int, ...]


def sessions(folder: Path) -> Sessions:
    running, used = [], set()
    for process in psutil.process_iter(["pid", "name", "cmdline"]):
        if process.info["name"] == "gcs_server":
            words = " ".join(process.info["cmdline"] or ())
            running.append(process.info["pid"])
            used |= {part.split("/")[0] for part in words.split(f"{folder}/")[1:]}
    old = [p for p in folder.glob("session_*") if p.is_dir() and not p.is_symlink() and p.name not in used]
    return Sessions(len(old), sum(size for path in old for size in _sizes(path)), tuple(running))


def _sizes(folder: Path) -> Iterator[int]:
    for root, _, files in os.walk(folder, onerror=None):
        for name in files:
            try:
                yield os.lstat(os.path.join(root, name)).st_size
            except OSError:
                continue  # gone meanwhile


def readable(size: float) -> str:
    """Bytes for people."""
    power = min(int(math.log(max(size, 1), 1024)), 4)
    size /= 1024**power
    return f"{size:.0f} {_UNITS[power]}" if power == 0 or size >= 100 else f"{size:.1f} {_UNITS[power]}"
