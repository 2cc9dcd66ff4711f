"""Writing that never leaves half a file: a temporary name first, then a rename."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, renamed onto it on success and removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the suffix stays last, for writers that choose the format by it
    part = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole."""
    with written_whole(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON whole, readable by a person; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")
