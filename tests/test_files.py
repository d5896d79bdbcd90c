"""What is written by one process at a time."""

import pytest

from errors import InputError
from files import lock


def test_one_holds_a_file_until_it_is_closed(tmp_path):
    path = tmp_path / "rows"
    with path.open("a") as first, path.open("a") as second:
        lock(first, "--output rows", "file")
        with pytest.raises(InputError, match="^--output rows is being written by another process.*another file$"):
            lock(second, "--output rows", "file")
        first.close()
        lock(second, "--output rows", "file")
