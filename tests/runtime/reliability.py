"""A reconstruction in a storm: ``python tests/runtime/reliability.py --kills 100``.

Workers on an S3 and SQS server are killed at random and replaced, a proxy fails a share
of all requests, some messages come twice. Rounds are run until enough workers were
killed. Each round takes the small recipe of the tests from affinities to meshes and
skeletons; it has to end, to be proved complete, and to equal a quiet run byte for byte.
Then a recipe of which two tasks are poison: the others have to be done, and they parked.
"""

import argparse
import gc
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import ClassVar

import numpy as np

from pipeline.errors import TaskError
from pipeline.runtime import queue as queues
from pipeline.runtime.drive import run_to_end
from pipeline.runtime.executors import Queued, one_thread, serial
from pipeline.runtime.run import Run
from pipeline.runtime.verify import verify
from pipeline.runtime.worker import work
from pipeline.specs import VolumeSpec
from pipeline.stages import STAGES
from pipeline.stages.base import ChunkStage

WORKERS = 4
LEASE_S = 4


class Poison(ChunkStage):
    """Two of its tasks are poison: one kills its worker, one always fails."""

    name: ClassVar[str] = "poison"

    def reads(self, task):
        return {}

    def process(self, task):
        if task.key.x == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        if task.key.x == 5:
            raise ZeroDivisionError("poison")
        return np.full(task.box.shape.astuple(), 1 + task.key.x, np.uint8, order="F")

    def describe(self, specs):
        return VolumeSpec(
            dtype="uint8",
            bounds=self.bounds,
            voxel_size_nm=(8, 8, 8),
            kind_of_values="image",
            storage_chunk=self.chunk,
        )


POISON = {
    "name": "poison",
    "grid": {"bounds": {"start": [0, 0, 0], "stop": [96, 8, 8]}, "chunk": [8, 8, 8]},
    "stage": [{"use": "poison", "output": "first"}],
}


class Storm:
    """Workers in processes of their own, some of which are killed.

    They are forked by a process that has loaded what they need and has no thread, so
    that the next one is at work at once.

    Parameters
    ----------
    queue : str
        What they serve.
    every_s : float
        Mean time between kills [s].
    """

    def __init__(self, queue, every_s, logs, seed):
        self._read, write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._read)
            try:
                self._rage(queue, every_s, logs, random.Random(seed), write)
            finally:
                os._exit(0)
        os.close(write)

    def _rage(self, queue, every_s, logs, chance, write):
        asked = []
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
        living, kills, deaths = set(), 0, 0
        due = time.monotonic() + every_s
        while not asked:
            while len(living) < WORKERS:
                living.add(self._birth(queue, logs))
            for pid in list(living):
                if os.waitpid(pid, os.WNOHANG)[0]:
                    living.discard(pid)
                    deaths += 1
            if time.monotonic() > due and living:
                victim = chance.choice(sorted(living))
                os.kill(victim, signal.SIGKILL)
                os.waitpid(victim, 0)
                living.discard(victim)
                kills += 1
                due = time.monotonic() + every_s * chance.uniform(0.5, 1.5)
            time.sleep(0.05)
        for pid in living:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.write(write, json.dumps({"kills": kills, "other_deaths": deaths}).encode())

    def _birth(self, queue, logs):
        pid = os.fork()
        if pid:
            return pid
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        from pipeline.runtime.logs import log_json

        status = 1
        try:
            with open(logs, "a", buffering=1) as stream:
                log_json(stream)
                work(queue, lease_s=LEASE_S, failures_in_row=1000)
                status = 0
        finally:
            os._exit(status)

    def end(self):
        """Kill all; return how many were killed at random, and how many died otherwise."""
        os.kill(self._pid, signal.SIGTERM)
        found = os.read(self._read, 10_000)
        os.waitpid(self._pid, 0)
        os.close(self._read)
        return json.loads(found)


def preload():
    """Load what the tasks need, so that no worker that is born spends its life on it."""
    import cloudfiles
    import cloudvolume
    import igneous.tasks
    import kimimaro
    import zmesh

    one_thread()
    return cloudfiles, cloudvolume, igneous, kimimaro, zmesh


def storm_round(number, recipe, cloud, expected, every_s, logs):
    """Run a recipe in a storm; return what it took. Fails if anything is not as it was."""
    queues._SETTLES_S["sqs"] = 2 * LEASE_S
    root = f"{cloud.root}/{number}"
    gc.freeze()
    storm = Storm(cloud.queue, every_s, logs, seed=number)
    began = time.monotonic()
    try:
        run = Run.start(recipe, root)
        parked = 0
        try:
            run_to_end(run, Queued(cloud.queue, poll_s=0.5), quiet=True)
        except TaskError:
            parked = len(run.failures())
            if expected is not None:
                raise
    finally:
        took = storm.end()
    seconds = time.monotonic() - began
    proofs = verify(run)
    faults = [f.to_json() for p in proofs for f in p.faults]
    if expected is None:
        assert parked == 2, run.failures()
        assert {f["key"] for f in faults} == {"0_3_0_0", "0_5_0_0"}, faults
    else:
        assert not faults, faults
        found = cloud.objects(f"root/{number}/")
        assert found == expected, sorted(
            k for k in {*found, *expected} if found.get(k) != expected.get(k)
        )
    return {
        "seconds": round(seconds, 1),
        "tasks": sum(p.tasks for p in proofs),
        "parked": parked,
        **took,
    }


def quiet(recipe, root):
    """Run a recipe with nothing in its way."""
    run_to_end(Run.start(recipe, str(root)), serial, quiet=True)


def main():
    """Rage until enough workers were killed, and print what it took."""
    import pytest

    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--every-s", type=float, default=2.0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        test = Path(__file__).with_name("test_reliability.py")
        figures = Path(folder, "figures.json")
        os.environ["EM_STORM_KILLS"] = str(arguments.kills)
        os.environ["EM_STORM_EVERY_S"] = str(arguments.every_s)
        os.environ["EM_STORM_FIGURES"] = str(figures)
        status = pytest.main(["-q", "--timeout=3000", "-p", "no:cacheprovider", str(test)])
        if figures.exists():
            sys.stdout.write(figures.read_text())
    sys.exit(status)


STAGES.setdefault("poison", Poison)

if __name__ == "__main__":
    main()
