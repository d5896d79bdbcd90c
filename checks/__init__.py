"""Whether this machine computes what it should, and how fast: scripts/check_accelerator.py runs what is here."""
