"""Parts of a table as files, ``<table>-00003.parquet``: each says which it is, and is taken only as it was written.

A later try of a run goes on where an earlier one ended, maybe on another day: what lies on the disk by then decides a
result, so that it is read whole, and compared, before it counts.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from pandas.util import hash_pandas_object

_PART = re.compile(r".+-\d{5}\.parquet")
_OF_PART = re.compile(r".+-\d{5}(\.incomplete)?(\.\d+\.writing|\.parquet)")  # and what an error may have left of one
_STAMP = b"anchorlens"  # under which a part's file says which part it is, and its digest
_DIGEST = "digest"


def place(folder: Path, table: str, number: int, *, whole: bool = True) -> Path:
    """The file of a part, or of what an error has left of one."""
    return folder / f"{table}-{number:05d}{'' if whole else '.incomplete'}.parquet"


def is_name(name: str) -> bool:
    """Whether a file bears the name of a part."""
    return _PART.fullmatch(name) is not None


def is_of_part(name: str) -> bool:
    """Whether a file is a part, or what an error may have left of one."""
    return _OF_PART.fullmatch(name) is not None


def write(frame: pd.DataFrame, path: Path, stamp: Mapping[str, Any]) -> None:
    """Write a part, durable before it has its name; ``stamp`` says which it is.

    Raises:
        OSError: if it cannot be written; then nothing bears its name.
    """
    table = pa.Table.from_pandas(frame, preserve_index=False)
    said = json.dumps({**stamp, _DIGEST: _digest(table.to_pandas())})
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _STAMP: said.encode()})
    passing = path.with_suffix(f".{os.getpid()}.writing")
    try:
        pq.write_table(table, passing)
        sync(passing)  # a name that outlives a power cut where the rows do not would pass for a part
        passing.rename(path)
    except BaseException:
        passing.unlink(missing_ok=True)  # on a full disk it takes the room that saying so needs
        raise


def read(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A part, and which it says it is.

    Raises:
        ValueError: if the file is not as it was written.
        OSError: if it is not there, or cannot be read.
    """
    try:
        with path.open("rb") as file:  # of a path, folders such as "seed=1" would become columns
            table = pq.ParquetFile(file).read()
        stamp = json.loads((table.schema.metadata or {})[_STAMP])
        frame, digest = table.to_pandas(), stamp.pop(_DIGEST)
        found = _digest(frame)
    except FileNotFoundError:
        raise
    except Exception as error:  # whatever bytes that were not written as a part may lead to
        raise ValueError(f"{path} cannot be read as a part ({type(error).__name__}: {error})") from error
    if digest != found:
        raise ValueError(f"{path} is not as it was written: its digest differs")
    return frame, stamp


def sync(path: Path) -> None:
    """Have a file or folder on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(frame: pd.DataFrame) -> str:
    """Of names, types and values, in their order."""
    types = [[str(name), str(kind)] for name, kind in frame.dtypes.items()]
    digest = hashlib.sha256(json.dumps(types).encode())
    rows = hash_pandas_object(frame, index=False)  # pyright: ignore[reportCallIssue] (pandas exports it by a function)
    digest.update(rows.to_numpy().tobytes())
    return digest.hexdigest()
