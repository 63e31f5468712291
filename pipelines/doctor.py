"""`equipoise doctor`: this installation, this machine, Ray, and whether a run could start; with what to do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.text import Text

from equipoise.datasets.manifest import Manifest
from equipoise.datasets.opening import open_parquet
from equipoise.models.errors import EquipoiseError
from equipoise.pipelines import installation, machine
from equipoise.pipelines.config import Config, load_config
from equipoise.pipelines.findings import Finding, show
from equipoise.pipelines.preflight import FULL, check_folder, check_methods, concerns, disk_concerns, shm_concerns
from equipoise.pipelines.ray_local import joins, look
from equipoise.pipelines.seats import Resources, Seats, take_seats
from equipoise.pipelines.tables import table
from equipoise.pipelines.trackers import check_tracker

_OLD_SESSIONS = 5 << 30  # bytes


def doctor(config: Path | None, overrides: list[str], console: Console, verify: bool = False) -> bool:
    """Print what was found, section by section; Ray is joined where RAY_ADDRESS names one, and never started.

    Args:
        config: of a run; None leaves out the section about it.
        overrides: "key=value".
        console: to print on.
        verify: read every byte of the data set and compare its hashes.

    Returns:
        Whether nothing is wrong. What is only to be looked at does not count.
    """
    found: list[Finding] = []

    def section(title: str, lines: list[Finding]) -> None:
        show(console, title, lines)
        found.extend(lines)

    section("Installation", installation.installation())
    section("Optional", installation.optional())
    section("This machine", this_machine())
    resources, lines = ray_state()
    section("Ray", lines)
    if config is not None:
        lines, seats = the_run(config, overrides, resources, verify)
        section(f"The run of {config}", lines)
        if seats is not None and resources is not None:
            show_seats(console, seats, resources)
    wrong = [line.what for line in found if line.mark == "wrong"]
    looks = [line.what for line in found if line.mark == "look"]
    verdict = f"wrong: {', '.join(wrong)}" if wrong else "nothing is wrong"
    console.print(Text(f"{verdict}{'; to look at: ' if looks else ''}{', '.join(looks)}", style="bold"))
    return not wrong


def this_machine() -> list[Finding]:
    out = machine.disk(Path())
    spill = machine.disk(machine.ray_folder())
    lines = [
        Finding("ok", "cores", f"{len(machine.cores())} of {os.cpu_count()}"),
        Finding("ok", "memory", f"{machine.readable(machine.free_memory())} free"),
        *(Finding("look", "disk", c.what, c.do) for c in disk_concerns(Path())),
        *(Finding("look", "shared memory", c.what, c.do) for c in shm_concerns()),
    ]
    if max(out.used, spill.used) < FULL:
        lines.append(
            Finding(
                "ok",
                "disk",
                f"{machine.readable(out.free)} free here, {machine.readable(spill.free)} in {machine.ray_folder()}",
            )
        )
    if machine.SHM.is_dir() and not shm_concerns():
        lines.append(
            Finding("ok", "shared memory", f"{machine.readable(machine.disk(machine.SHM).free)} in {machine.SHM}")
        )
    return lines


def ray_state() -> tuple[Resources | None, list[Finding]]:
    """What there is to sit on, and the state of Ray: the cluster's where there is one, else what lies about here."""
    try:
        import ray
    except ImportError as error:
        return None, [Finding("wrong", "version", f"Ray cannot be imported: {error}.", "Run `pip install -e .`")]
    lines = [Finding("ok", "version", ray.__version__), usage_statistics(), sessions()]
    address = os.environ.get("RAY_ADDRESS")
    try:
        resources = look()
    except EquipoiseError as error:
        return None, [*lines, Finding("wrong", "cluster", str(error))]
    if not resources.cluster:
        here = "RAY_ADDRESS is not set: a run starts a Ray of its own here"
        return resources, [*lines, Finding("ok", "cluster", here)]
    free, there = ray.available_resources(), ray.cluster_resources()
    lines.append(Finding("ok", "cluster", f"{address or 'this process'}: {len(resources.nodes)} nodes"))
    for node in resources.nodes:
        has = f"{node.cpus:g} CPUs, {node.gpus:g} GPUs, {machine.readable(node.memory)} of memory"
        lines.append(Finding("ok", node.name, f"{has}, {machine.readable(node.object_store)} of object store"))
    shares = ", ".join(f"{free.get(r, 0):g} of {there.get(r, 0):g} {r}s" for r in ("CPU", "GPU"))
    lines.append(Finding("ok", "free now", shares))
    dashboard = ray.init(ignore_reinit_error=True, log_to_driver=False).dashboard_url
    lines.append(Finding("ok", "dashboard", f"http://{dashboard}" if dashboard else "off"))
    return resources, lines


def usage_statistics() -> Finding:
    if os.environ.get("RAY_USAGE_STATS_ENABLED", "0") != "0":
        return Finding(
            "look",
            "statistics",
            "RAY_USAGE_STATS_ENABLED=1 lets a Ray that starts here report its use to its makers.",
            "Unset it: Equipoise then switches them off.",
        )
    return Finding("ok", "statistics", "off in a Ray that Equipoise starts")


def sessions() -> Finding:
    folder = machine.ray_folder()
    seen = machine.sessions(folder)
    old = f"{seen.old} old sessions in {folder}, {machine.readable(seen.old_bytes)}"
    running = f"{len(seen.running)} running (gcs_server {', '.join(map(str, seen.running))})"
    if seen.running and not joins():
        return Finding(
            "look",
            "sessions",
            f"{running}: they take cores and memory; {old}.",
            "If nobody needs them: `ray stop`, which stops all of yours.",
        )
    if seen.old_bytes > _OLD_SESSIONS:
        return Finding("look", "sessions", f"{old}.", "Sessions that no Ray uses may be deleted.")
    return Finding("ok", "sessions", f"{running if seen.running else 'no Ray runs on this machine'}; {old}")


def the_run(
    path: Path, overrides: list[str], resources: Resources | None, verify: bool = False
) -> tuple[list[Finding], Seats | None]:
    """The checks of the preflight, each on its own, and the seats where they fit."""
    lines: list[Finding] = []

    def check(what: str, ask: Callable[[], str]) -> bool:
        try:
            lines.append(Finding("ok", what, ask()))
        except EquipoiseError as error:
            lines.append(Finding("wrong", what, str(error)))
        return lines[-1].mark == "ok"

    made: list[Config] = []
    sitting: list[Seats] = []
    manifests: list[Manifest] = []

    def configuration() -> str:
        config = load_config(path, overrides)
        resolved = {"data": str(Path(config.data).resolve()), "out": str(Path(config.out).resolve())}
        made.append(config.model_copy(update=resolved))
        return f"balancer {config.balancer.name}, resampler {config.resampler.name}"

    if not check("configuration", configuration):
        return lines, None
    [config] = made

    def data() -> str:
        manifest = Manifest.load(config.data)
        manifests.append(manifest)
        check_shards(manifest, Path(config.data), verify)
        rows = ", ".join(f"{split.rows} {name}" for name, split in manifest.splits.items())
        how = "every byte compared" if verify else "files and their rows counted; --verify compares every byte"
        return f"{rows} rows; {how}"

    def methods() -> str:
        check_methods(config, manifests[0])
        return "go with the data, the model and each other"

    def folder() -> str:
        state = check_folder(config)
        says = {
            "new": "new",
            "unfinished": "unfinished: the run goes on",
            "finished": "finished: its result is printed",
        }
        return f"{config.out}: {says[state]}"

    def tracker() -> str:
        check_tracker(config.tracker)
        return config.tracker

    def seats() -> str:
        assert resources is not None
        sitting.append(take_seats(config, resources))
        return f"all fit, on {sitting[0].device}"

    check("data set", data)
    if manifests:
        check("methods", methods)
    check("run folder", folder)
    check("tracker", tracker)
    if resources is None:
        lines.append(Finding("look", "seats", "Not known without the cluster.", "See under Ray."))
    elif check("seats", seats) and manifests:
        lines += [
            Finding("look", "estimate", c.what, c.do) for c in concerns(config, manifests[0], resources, sitting[0])
        ]
    if sitting and joins():
        lines.append(room(config, sitting[0]))
    return lines, sitting[0] if sitting else None


def check_shards(manifest: Manifest, root: Path, verify: bool) -> None:
    """Raise an `EquipoiseError` for a shard that is missing, truncated or of another length than the manifest says."""
    for split in manifest.splits.values():
        for shard in split.shards:
            rows = open_parquet(root / shard.file, manifest.schema()).metadata.num_rows
            if rows != shard.rows:
                raise EquipoiseError(
                    f"{root / shard.file} holds {rows} rows, and its manifest says {shard.rows}: prepare the data set again."
                )
    if verify:
        manifest.verify(root)


def room(config: Config, seats: Seats) -> Finding:
    """Whether there is room on the cluster right now."""
    import ray

    needed = {"CPU": config.workers + config.actors + 1.0}
    needed["GPU"] = config.workers * seats.worker.gpus + config.actors * seats.actor.gpus
    free = ray.available_resources()
    for resource, amount in needed.items():
        if free.get(resource, 0) < amount:
            return Finding(
                "look",
                "room now",
                f"{free.get(resource, 0):g} {resource}s of the cluster are free now, and the run asks for {amount:g}.",
                "It waits EQUIPOISE_START_TIMEOUT_S (60) seconds for them, and then says what is missing.",
            )
    return Finding("ok", "room now", "enough is free on the cluster")


def show_seats(console: Console, seats: Seats, resources: Resources) -> None:
    """Who would sit where."""
    workers, actors = (sum(getattr(p, who) for p in seats.places) for who in ("workers", "actors"))

    def bound(cores: tuple[int, ...] | None) -> str:
        return (
            "any" if cores is None else ", ".join(map(str, cores)) if len(cores) < 5 else f"{cores[0]} .. {cores[-1]}"
        )

    rows = [
        [
            "training workers",
            workers,
            "1",
            f"{seats.worker.gpus:g}",
            str(seats.worker.threads),
            bound(seats.worker.cores),
        ],
        ["valuation actors", actors, "1", f"{seats.actor.gpus:g}", str(seats.actor.threads), bound(seats.actor.cores)],
        ["data tasks, at most", int(workers * seats.data_cpus), "1", "0", "1", "any"],
        ["driver, controller", 2, "0", "0", "", "any"],
    ]
    console.print(table("Who sits where", ["who", "how many", "CPUs each", "GPUs each", "threads", "cores"], rows))
    if resources.cluster:
        nodes = [[p.node.name, p.node.cpus, p.node.gpus, p.workers, p.actors] for p in seats.places]
        console.print(table("On the nodes", ["node", "CPUs", "GPUs", "workers", "actors"], nodes))
    else:
        console.print(
            f"Ray starts here with {seats.cpus} logical CPUs, which only schedule: the cores are {len(resources.cores)}."
        )
    console.print()
