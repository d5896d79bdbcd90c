"""One experiment a file, each read from top to bottom; `python -m scripts.NAME --help` teaches it."""
