"""Two million synapses in tables: none lost, none twice, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_million_synapses_are_kept_in_bounded_memory(tmp_path):
    code = (
        "import json, harness, synapses;"
        "o = harness.in_fresh_process(synapses.tables, 2_000_000);"
        "print(json.dumps(o.to_json()))"
    )
    path = tmp_path / "run.py"
    path.write_text(
        f"if __name__ == '__main__':\n    {code.replace(';', chr(10) + '    ')}\n"
    )
    told = subprocess.run(
        [sys.executable, str(path)],
        env={
            "PYTHONPATH": str(BENCHMARKS),
            "OMP_NUM_THREADS": "1",
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=800,
    )
    found = json.loads(told.stdout)
    assert found["facts"]["conserved"]
    assert found["facts"]["clefts"] == 2_000_000
    assert found["total"]["peak_bytes"] < 500e6
