"""Found in place of the package `cli` where a script is started by its path, from any folder: it gives way to that.

Python puts a script's own folder on sys.path[0], where ours would be what other packages import as
`evaluate` or `score`. The root takes its place, and the folder that one is in, for functions of one's own, comes last.
"""

import importlib
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
sys.path.append(os.getcwd())
del sys.modules["cli"]
importlib.import_module("scripts")  # from here on Ctrl-C is one line
importlib.import_module("cli")
