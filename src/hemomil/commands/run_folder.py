"""The output folder of a command: taken or free, begun or done, and what it says of itself.

A folder is done when it has run.json. Until then `.work/` holds what a killed run had finished, and
`.work/begun.json` says which run that was, so that the same command goes on and another one is refused.
"""

import hashlib
import json
import platform
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from hemomil.commands.settings import Settings
from hemomil.commands.team import is_team
from hemomil.errors import HemomilError, RunFolderError, SettingsError
from hemomil.files import write_json
from hemomil.types import Notice


@dataclass(kw_only=True)
class RunFolder:
    """A run folder while a command fills it."""

    path: Path
    command: str
    settings: Settings
    inputs: Mapping[str, Path | None]
    notices: list[Notice] = field(default_factory=list)
    timings: dict[str, float] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    """What else run.json says: classes, device, counts."""

    @property
    def work(self) -> Path:
        """Where finished parts lie until the run is done."""
        return self.path / ".work"

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Note the wall seconds of a stage."""
        start = time.perf_counter()
        yield
        self.timings[stage] = round(self.timings.get(stage, 0.0) + time.perf_counter() - start, 2)

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Work that ends in a finished run; where the user has to put something right, nothing stays.

        After a kill or a bug the finished parts stay, for the same command to go on from.
        """
        try:
            yield
        except HemomilError:
            shutil.rmtree(self.path, ignore_errors=True)
            raise
        self.finish()

    def finish(self) -> None:
        """Write run.json, the mark of a finished run, and drop the working files."""
        write_json(self.path / "run.json", self.record())
        shutil.rmtree(self.work, ignore_errors=True)

    def record(self) -> dict[str, Any]:
        """What run.json says."""
        return {
            "command": self.command,
            "version": version("hemomil"),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "machine": {"system": platform.platform(), "python": platform.python_version()},
            "device": self.settings.mil.device,
            "seed": self.settings.seed,
            "settings": self.settings.model_dump(mode="json"),
            "data": {name: str(path.resolve()) for name, path in self.inputs.items() if path},
            "input_hashes": input_hashes(self.inputs),
            "timings": self.timings,
            "notices": [{"kind": n.kind, "subject": n.subject, "text": n.text} for n in self.notices],
            **self.facts,
        }


def open_run(
    path: Path,
    command: str,
    settings: Settings,
    inputs: Mapping[str, Path | None],
    *,
    force: bool = False,
) -> RunFolder:
    """Take `path` for this command, resume what the same command left there, or refuse.

    Raises RunFolderError where a finished run, another run or other files lie in the way.
    """
    from hemomil.commands.settings import write_settings

    if is_team() and command != "train":
        raise SettingsError(
            f"torchrun has started `{command}` more than once: only `train` can be shared out",
            hint="run the command by itself; --jobs N does its parts side by side",
        )
    begun = {
        "command": command,
        "settings": settings.model_dump(mode="json"),
        "data": {name: str(p.resolve()) for name, p in inputs.items() if p},
        "input_hashes": input_hashes(inputs),
    }
    if force:
        _clear(path)
    _refuse_if_taken(path, begun)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / ".work" / "begun.json", begun)
    write_settings(path / "settings.toml", settings)
    return RunFolder(path=path, command=command, settings=settings, inputs=inputs)


def _clear(path: Path) -> None:
    """Empty a run folder; a folder that is no run folder is left alone."""
    if not path.exists() or not any(path.iterdir()):
        return
    if not (path / "run.json").exists() and not (path / ".work").exists():
        raise RunFolderError(
            f"{path} is not a run folder: --force will not empty it", hint="choose another folder with -o"
        )
    shutil.rmtree(path)


def _refuse_if_taken(path: Path, begun: Mapping[str, Any]) -> None:
    if (path / "run.json").exists():
        raise RunFolderError(f"{path} holds a finished run", hint="choose another folder, or give --force")
    mark = path / ".work" / "begun.json"
    if mark.exists() and json.loads(mark.read_text()) != begun:
        raise RunFolderError(
            f"{path} holds an unfinished run with other settings or inputs",
            hint="repeat the command it was begun with, choose another folder, or give --force",
        )
    if not mark.exists() and path.exists() and any(path.iterdir()):
        raise RunFolderError(f"{path} is not empty and holds no run", hint="choose another folder")


def input_hashes(inputs: Mapping[str, Path | None]) -> dict[str, str]:
    """SHA-256 of every input file; of a folder, the names and sizes of what it holds."""
    return {name: _digest(path) for name, path in inputs.items() if path}


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    if path.is_dir():
        for file in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
        return digest.hexdigest()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_record(path: Path, *needed: str) -> dict[str, Any]:
    """run.json of a finished run; RunFolderError where there is none or `needed` files are missing."""
    if not (path / "run.json").is_file():
        raise RunFolderError(
            f"{path} holds no finished run (no run.json)", hint="repeat the command that began it"
        )
    missing: Sequence[str] = [name for name in needed if not (path / name).exists()]
    if missing:
        raise RunFolderError(f"{path} has no {', '.join(missing)}", hint="was it made by `hemomil train`?")
    record: dict[str, Any] = json.loads((path / "run.json").read_text(encoding="utf-8"))
    return record
