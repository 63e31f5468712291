"""One persistent pool of gloo processes for all world-size cases: spawning four takes seconds, a call milliseconds."""

import importlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

SIZE = 4
WORLDS = (1, 2, 4)


def _serve(rank: int, rendezvous: str, pipe: Any) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.path.insert(0, str(Path(__file__).parent))
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=SIZE)
    groups = {world: dist.new_group(list(range(world))) for world in WORLDS}
    pipe.send("ready")
    while (call := pipe.recv()) is not None:
        module, name, world, args = call
        try:
            function = getattr(importlib.import_module(module), name)
            pipe.send((True, function(rank, world, groups[world], *args)))
        except Exception:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()


class GlooPool:
    """`SIZE` processes that run `module.function(rank, world, group, *args)` on the first `world` of them."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "torchmetrics"])
        self._folder = tempfile.TemporaryDirectory()
        self._pipes, self._processes = [], []
        for rank in range(SIZE):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, f"{self._folder.name}/rendezvous", theirs), daemon=True
            )
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        for pipe in self._pipes:
            assert pipe.recv() == "ready"

    def run(self, module: str, function: str, world: int, *args: Any) -> list[Any]:
        """What each of the `world` ranks returned."""
        for pipe in self._pipes[:world]:
            pipe.send((module, function, world, args))
        answers = []
        for rank, pipe in enumerate(self._pipes[:world]):
            if not pipe.poll(120):
                raise TimeoutError(f"rank {rank} of {world} did not answer in {function}")
            answers.append(pipe.recv())
        for ok, value in answers:
            if not ok:
                raise RuntimeError(value)
        return [value for _, value in answers]

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(10)
        self._folder.cleanup()
