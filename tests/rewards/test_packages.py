"""Where verifiers import packages from."""

import os
import subprocess
import sys
import venv
from pathlib import Path

from rewards.execution import packages


def test_whatever_python_imports_from_is_seen_and_no_folder_of_the_users(tmp_path, monkeypatch):
    venv.create(tmp_path / "env", symlinks=True)
    python = str(tmp_path / "env" / "bin" / "python")
    installed = subprocess.check_output([python, "-c", "import site; print(site.getsitepackages()[0])"], text=True)
    for name in ("elsewhere", "shared", "target/some-1.0.dist-info", "project"):
        (tmp_path / name).mkdir(parents=True)
    pth = (f"import sys; sys.path.append({str(tmp_path / 'elsewhere')!r}); print('hello')\n"
           f"{tmp_path / 'shared'}\n/nowhere\n")
    (Path(installed.strip()) / "more.pth").write_text(pth)
    monkeypatch.setattr(sys, "executable", python)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(tmp_path / "project"), str(tmp_path / "target")]))
    folders = packages.import_folders.__wrapped__()
    assert folders[0] == str(tmp_path / "target")  # of packages, pip install --target
    assert {installed.strip(), str(tmp_path / "elsewhere"), str(tmp_path / "shared")} < {*folders}
    assert not {str(tmp_path / "project"), os.getcwd(), "/nowhere"} & {*folders}
