"""Data sets of TensorFlow Datasets, by random access, without TensorFlow.

`tfds:NAME[/CONFIG][:SPLIT]` is prepared once, as array_record, in TFDS' own folder (TFDS_DATA_DIR, by default
~/tensorflow_datasets), and read from there ever after, whatever the network does.
"""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.records import Record
from errors import InputError

FORMAT = "array_record"  # TFDS' one format with cheap random access


class TfdsSource:
    """The rows of a split of a prepared data set. A pickle holds folder and split: its loader opens the files again."""

    def __init__(self, name: str, folder: str, split: str):
        """`folder` is the prepared one, that of the version. Raises InputError where it cannot be read."""
        self._name, self._folder, self._split = name, folder, split
        builder = _open_folder(name, folder)
        _check_split(name, split, builder.info.splits)
        _check_shards(name, folder, builder.info.splits[split].file_instructions)
        self._features = builder.info.features
        self._rows = builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Record:
        from google.protobuf.message import DecodeError

        try:
            return _plain(self._rows[range(len(self))[index]], self._features)
        except (RuntimeError, DecodeError) as error:  # array_record raises RuntimeError for whatever is wrong
            raise InputError(f"{self.place(index)}: corrupt ({_first_line(error)}); delete {self._folder} and have the "
                             f"data set prepared again") from None

    def place(self, index: int) -> str:
        """`tfds:name:split row i`, i from 0 in the split."""
        return f"tfds:{self._name}:{self._split} row {range(len(self))[index]}"

    def __reduce__(self):
        return TfdsSource, (self._name, self._folder, self._split)


def open_tfds(spec: str) -> TfdsSource:
    """The rows of NAME[/CONFIG][:SPLIT]; SPLIT as TFDS has it (`validation`, `train[:10%]`), else `train`.

    A data set that is not prepared yet is prepared, by one process of those that ask for it at the same time. Raises
    InputError for what TFDS does not know or cannot fetch, and for data that cannot be read by random access.
    """
    name, _, split = spec.partition(":")
    with _quietly():
        builder = _find(name)
        if not builder.is_prepared():
            _prepare(name)
            builder = _find(name)
    return TfdsSource(name, builder.data_dir, split or "train")


def _find(name: str) -> Any:
    """The builder of a name, a class known to TFDS or a folder prepared earlier; it need not be prepared."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    import data.python_stdlib  # noqa: F401  (TFDS knows a data set once its class exists)

    try:
        return tfds.builder(name)
    except tfds.core.DatasetNotFoundError:
        raise InputError(f"data tfds:{name}: TFDS knows no data set of this name, and none is prepared in "
                         f"{tfds.core.constants.DATA_DIR}; mend the name, or set TFDS_DATA_DIR") from None
    except ValueError as error:  # a malformed name, an unknown config
        reason = _first_line(error).rpartition('": ')[2].partition(". ")[0].rstrip(".")
        raise InputError(f"data tfds:{name}: {reason}; give NAME or NAME/CONFIG of the TFDS catalogue") from None
    except ImportError as error:
        raise _needs_more(name, error) from None
    except (OSError, ParseError) as error:
        raise InputError(f"data tfds:{name}: what is prepared in {tfds.core.constants.DATA_DIR} is incomplete or "
                         f"corrupt ({_first_line(error)}); delete its folder, have it prepared again") from None


def _prepare(name: str) -> None:
    """Builds the data set in its folder, which TFDS renames into place when all of it is written.

    The lock is for processes on this machine. One that waited finds the folder and has nothing left to do.
    """
    import filelock
    import tensorflow_datasets as tfds

    folder = _find(name).data_dir
    if "://" in folder:
        raise InputError(f"data tfds:{name}: not prepared in {folder}, and prepared are data sets on a disk of this "
                         f"machine alone; unset TFDS_DATA_DIR, or copy a prepared folder there")
    try:
        Path(folder).parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(f"{folder}.lock"):
            # no try_download_gcs: what lies in TFDS' bucket is in tfrecord
            _find(name).download_and_prepare(
                file_format=FORMAT, download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except ImportError as error:
        raise _needs_more(name, error) from None
    except (OSError, AssertionError, tfds.download.DownloadError) as error:
        # requests' errors are OSErrors; data that only a person can fetch is an AssertionError in TFDS
        raise InputError(f"data tfds:{name}: cannot be prepared in {folder} ({_first_line(error)}); see to network and "
                         f"disk, or prepare it elsewhere as {FORMAT} and set TFDS_DATA_DIR") from None


def _needs_more(name: str, error: ImportError) -> InputError:
    return InputError(f"data tfds:{name}: TFDS needs more packages for it ({_first_line(error)}); install them, or "
                      f"prepare the data set elsewhere as {FORMAT} and set TFDS_DATA_DIR")


def _open_folder(name: str, folder: str) -> Any:
    """The builder of a prepared folder, as it stands there, whatever TFDS' or our code would make of it today."""
    import tensorflow_datasets as tfds
    from google.protobuf.json_format import ParseError

    try:
        builder = tfds.builder_from_directory(folder)
    except (OSError, ValueError, ParseError) as error:
        raise InputError(f"data tfds:{name}: {folder} is incomplete or corrupt ({_first_line(error)}); delete it and "
                         f"have the data set prepared again") from None
    formats = sorted(each.value for each in builder.info.available_file_formats())
    if FORMAT not in formats:
        raise InputError(f"data tfds:{name}: {folder} is in {', '.join(formats)}, which has no random access here; "
                         f"delete it, or prepare it with download_and_prepare(file_format='{FORMAT}')")
    return tfds.builder_from_directory(folder, file_format=FORMAT)


def _check_split(name: str, split: str, splits: Any) -> None:
    """Raises InputError for a split that does not exist or has no rows.

    TFDS itself reads a slice like [2:1] as all from 2 on.
    """
    import tensorflow_datasets as tfds

    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(splits)
    except ValueError as error:
        reason = _first_line(error).partition(". ")[0].rstrip(".")
        raise InputError(f"data tfds:{name}: {reason}; it has {', '.join(splits)}, and slices of them such as "
                         f"train[:10%]") from None
    for part in parts:
        end = splits[part.splitname].num_examples if part.to is None else part.to
        if end <= (part.from_ or 0):
            raise InputError(f"data tfds:{name}: the split {split!r} holds no rows; give one that does, of "
                             f"{', '.join(splits)}")


def _check_shards(name: str, folder: str, instructions: list[Any]) -> None:
    """Raises InputError for a shard that is missing, cut off or another's, now and not hours into a run."""
    from array_record.python.array_record_module import ArrayRecordReader

    for instruction in instructions:
        try:
            reader = ArrayRecordReader(instruction.filename)
            rows = reader.num_records()
            reader.close()
        except (RuntimeError, ValueError) as error:
            rows = _first_line(error)
        if rows != instruction.examples_in_shard:
            found = f"{rows} rows, not {instruction.examples_in_shard}" if isinstance(rows, int) else rows
            raise InputError(f"data tfds:{name}: corrupt shard {instruction.filename} ({found}); delete {folder} and "
                             f"have the data set prepared again")


def _plain(value: Any, feature: Any, in_sequence: bool = False) -> Any:
    """TFDS' value of a feature in plain Python: str, numbers, lists, dicts.

    A sequence of dicts, which TFDS gives as a dict of lists, becomes a list of dicts.
    """
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Dataset):
        return [_plain(item, feature.feature) for item in value]
    if not isinstance(value, dict):
        return _plain_leaf(value)
    if isinstance(feature, tfds.features.Sequence):
        feature, in_sequence = feature.feature, True
    columns = {key: _plain(item, feature[key], in_sequence) for key, item in value.items()}
    return [dict(zip(columns, row)) for row in zip(*columns.values())] if in_sequence else columns


def _plain_leaf(value: Any) -> Any:
    """Bytes that are no UTF-8 text stay bytes."""
    if isinstance(value, list) and value and isinstance(value[0], np.number):
        value = np.asarray(value)  # token ids: much faster than one by one
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain_leaf(item) for item in value] if value and not isinstance(value[0], int | float) else value
    return _text(value) if isinstance(value, bytes) else value


def _text(value: bytes) -> str | bytes:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keeps TFDS off stdout, which is for results, and where no person watches off stderr, too."""
    import tensorflow_datasets as tfds

    watched = sys.stderr.isatty()
    loggers = [logging.getLogger(name) for name in ("absl", "urllib3")]
    levels = [logger.level for logger in loggers]
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(sys.stderr if watched else nowhere):
        tfds.display_progress_bar(enable=watched)
        for logger in loggers:
            logger.setLevel(logger.level if watched else logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels):
                logger.setLevel(level)


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
