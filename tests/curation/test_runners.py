"""A recipe on a real Ray of this machine, one of two workers killed in the middle: the same bits as in one process."""

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

import curation.runners as runners
from curation.runners import make_spread
from errors import InputError

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
import types
from pathlib import Path
import curation.duplicates as duplicates, curation.run as running
from curation.recipe import parse_recipe
from curation.rows import DataRows, fingerprint
from curation.runners import make_spread
from data.sources import DataSource

folder, runner = Path(sys.argv[1]), sys.argv[2]
if __name__ == "__main__":
    running.SHARE = duplicates.ROWS_AT_A_TIME = 64
    if runner == "ray":
        import ray
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    rows = DataRows([DataSource(str(folder / "data.jsonl"))])
    recipe = parse_recipe({"stages": [{"curated:shorter": {"than": 60}}, {"curated:deadly": {"marker": sys.argv[3]}},
                                      {"near_duplicates": {"threshold": 0.4}}]})
    running.run_stages(rows, recipe, folder / runner, fingerprint(rows), make_spread(runner, 1))
"""


def run(folder, runner, marker):
    program = folder / "program.py"
    program.write_text(PROGRAM)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    subprocess.run([sys.executable, program, folder, runner, marker], check=True, timeout=240, cwd=folder,
                   env=os.environ | {"PYTHONPATH": paths})
    return {path.name: content(path) for name in ("work", "dropped") for path in (folder / runner / name).iterdir()}


def content(path):
    """Without what stages depend on: the marker, which a key names, is another file in each run."""
    if path.suffix != ".json":
        return path.read_bytes()
    return {name: value for name, value in json.loads(path.read_text()).items() if name != "state"}


@pytest.mark.slow
def test_ray_gives_the_same_bits_though_a_worker_is_killed(tmp_path):
    pytest.importorskip("ray")
    texts = [f"the {number % 7} farmers of town {number % 90} sold {number} apples" + " today" * (number % 5)
             for number in range(300)]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    marker = tmp_path / "killed"
    marker.touch()
    expected = run(tmp_path, "local", marker)
    marker.unlink()
    assert run(tmp_path, "ray", marker) == expected
    assert marker.exists()


def test_ray_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install -r requirements-curation.txt"):
        make_spread("ray", 1)
    assert make_spread("local", 1) is None


def test_ray_that_does_not_start_is_one_line(monkeypatch):
    def init(**_):
        raise Exception("timed out\nduring startup")

    monkeypatch.setattr(runners, "import_ray", lambda: types.SimpleNamespace(is_initialized=lambda: False, init=init))
    with pytest.raises(InputError, match="does not start, or is not reached .timed out during startup.; see to RAY_"):
        next(runners.over_ray(bytes, 1))
