"""The command line as a user meets it: help, exit codes, messages, and documents that keep up with it."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from pydantic import BaseModel
from typer.main import get_command

from hemomil.cli import app

ROOT = Path(__file__).parents[1]


def hemomil(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hemomil.cli", *words], cwd=cwd, capture_output=True, text=True, check=False
    )


def leaves(group, prefix=()):
    """Every command that is shown, with its words."""
    for name, command in group.commands.items():
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            yield from leaves(command, (*prefix, name))
        else:
            yield (*prefix, name), command


def test_help_does_not_import_torch():
    code = (
        "import sys; from typer.testing import CliRunner; from hemomil.cli import app; "
        "r = CliRunner().invoke(app, ['--help']); assert r.exit_code == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_info_does_not_import_torch():
    code = "import sys; from hemomil import commands; commands.info(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "words",
    [
        *(f"{command} nowhere.csv -o run" for command in ("study", "train", "detect", "explain")),
        *(f"{command} nowhere.csv" for command in ("check", "report", "view")),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(words, tmp_path):
    code = (
        "import sys; from typer.testing import CliRunner; from hemomil.cli import app; "
        f"told = CliRunner().invoke(app, {words.split()}).exception; "
        "assert 'nowhere.csv' in str(told), told; print(*{'torch', 'bokeh'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    ("words", "command"),
    list(leaves(get_command(app))),
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else "",
)
def test_every_command_and_flag_is_explained_and_documented(words, command):
    document = (ROOT / "docs" / "commands.md").read_text()
    assert command.help
    assert f"`hemomil {' '.join(words)}`" in document
    for option in command.params:
        assert option.help or option.name == "help", f"{' '.join(words)}: {option.name} has no help"
        if option.param_type_name == "option":
            assert option.opts[0] in document


def test_every_setting_has_a_description():
    from hemomil.commands.settings import Settings

    def walk(model: type[BaseModel], path: str = ""):
        for name, field in model.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                yield from walk(field.annotation, f"{path}{name}.")
            else:
                yield f"{path}{name}", field.description

    undescribed = [name for name, description in walk(Settings) if not description]
    assert not undescribed


def test_a_misspelt_column_is_met_with_exit_code_2_and_a_remedy(tmp_path):
    (tmp_path / "manifest.csv").write_text("image,sample,pateint,label\na.png,s,p,control\n")
    done = hemomil("study", "manifest.csv", "-o", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "pateint" in done.stderr
    assert "patient" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_missing_manifest_is_met_with_exit_code_2(tmp_path):
    done = hemomil("train", "nowhere.csv", "-o", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "nowhere.csv" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_bug_of_ours_ends_with_exit_code_1(monkeypatch):
    from hemomil import cli, commands

    monkeypatch.setattr(commands, "info", lambda run: 1 / 0, raising=False)
    monkeypatch.setattr(sys, "argv", ["hemomil", "info"])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def test_info_prints_json():
    done = hemomil("info", "--json")
    assert done.returncode == 0
    assert "hemomil" in json.loads(done.stdout)


def test_check_prints_counts_and_problems_with_rows(cohort):
    done = hemomil("check", str(cohort / "manifest.csv"), "--cells", str(cohort / "cells.csv"))
    assert done.returncode == 0, done.stderr
    assert "no problems" in done.stdout
    assert "control" in done.stdout


def test_init_makes_a_manifest_that_check_accepts(cohort, tmp_path):
    import pandas as pd

    for row in pd.read_csv(cohort / "manifest.csv", dtype=str).itertuples():
        file = tmp_path / "tree" / row.label / row.patient / row.sample / Path(row.image).name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((cohort / row.image).read_bytes())
    assert hemomil("init", str(tmp_path / "tree")).returncode == 0
    assert hemomil("check", str(tmp_path / "tree" / "manifest.csv")).returncode == 0


@pytest.mark.parametrize(
    "package",
    sorted(".".join(p.parent.relative_to(ROOT / "src").parts) for p in ROOT.glob("src/**/__init__.pyi")),
)
def test_a_front_door_opens_to_every_name(package):
    room = import_module(package)
    assert room.__all__
    for name in room.__all__:
        assert getattr(room, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = room.nonsense


def test_every_command_is_a_python_function_too():
    from hemomil import commands

    spoken = {"_".join(words).replace("-", "_") for words, _ in leaves(get_command(app))}
    assert spoken <= set(commands.__all__)
    assert all(callable(getattr(commands, name)) for name in commands.__all__)


def test_the_readme_names_every_file_of_the_package():
    tree = (ROOT / "README.md").read_text()
    files = {path.name for path in (ROOT / "src").rglob("*.py") if path.name != "__init__.py"}
    assert not {name for name in files if f" {name} " not in tree}
