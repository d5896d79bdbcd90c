"""Found in place of the package `cli` where a script is started by its path, from any folder: it gives way to that.

Python puts a script's own folder on sys.path[0], where ours would be what other packages import as
`evaluate` or `score`. The root takes its place.
"""

import importlib
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])
del sys.modules["cli"]
importlib.import_module("scripts")  # from here on Ctrl-C is one line
importlib.import_module("cli")
