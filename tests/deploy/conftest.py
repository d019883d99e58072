"""Airflow in a home of its own, with a small recipe beside the DAGs."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HAS_AIRFLOW = importlib.util.find_spec("airflow") is not None
needs_airflow = pytest.mark.skipif(
    not HAS_AIRFLOW, reason='Airflow is not installed: pip install "em-pipeline[airflow]"'
)

TINY = """
name = "tiny"

[grid]
bounds = { start = [0, 0, 0], stop = [64, 64, 8] }
chunk = [32, 32, 8]

[layers]
raw = "phantom://64,64,8/image"

[[stage]]
use = "ingest"
source = "raw"
output = "image"
voxel_size_nm = [6, 6, 30]
storage_chunk = [32, 32, 8]

[[stage]]
use = "image_quality"
image = "image"
output = "quality"

[[stage]]
use = "downsample"
layer = "image"
output = "image/pyramid"
mips = 1
storage_chunk = [32, 32, 8]
"""


class Airflow:
    """An Airflow of its own below a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.dags = folder / "dags"
        (self.dags / "recipes").mkdir(parents=True)
        shutil.copy(ROOT / "dags" / "reconstruct.py", self.dags)
        (self.dags / "recipes" / "tiny.toml").write_text(TINY)
        self.environment = {
            **os.environ,
            "AIRFLOW_HOME": str(folder / "home"),
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.dags),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__LOGGING__LOGGING_LEVEL": "INFO",
            "EM_SCALER": "processes",
            "EM_WORKERS": str(folder / "workers"),
            "EM_POLL_S": "1",
            "EM_PATIENCE_S": "0",
            "OMP_NUM_THREADS": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }

    @property
    def queue(self):
        return f"fq://{self.folder}/queues/{{run}}-{{pool}}"

    def python(self, code, *arguments, timeout=200, **environment):
        """Run code in a process of its own; return what it printed as JSON, last."""
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1]), done.stdout + done.stderr

    def stop_workers(self):
        from pipeline.orchestration.scalers import Processes

        scaler = Processes(self.folder / "workers")
        for url in {f.read_text().splitlines()[0] for f in scaler.folder.glob("*.pid")}:
            scaler.scale(url, "cpu", 0)


@pytest.fixture(scope="session")
def airflow(tmp_path_factory):
    home = Airflow(tmp_path_factory.mktemp("airflow"))
    yield home
    home.stop_workers()
