"""Starting and ending the viewer: what is refused, what a kill leaves, and Ctrl-C."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from hemomil.commands.viewing import make_server
from hemomil.errors import RunFolderError, SettingsError
from view_runs import make_run
from view_server import Client, serving


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("process"))


@pytest.fixture(scope="module")
def client(run):
    with serving(run) as client:
        yield client


def test_marks_survive_a_kill_and_a_reload(run, tmp_path):
    marks = tmp_path / "marks.csv"
    with started(run, marks) as process:
        client = Client(address_of(process))
        assert client.mark(30, "class", "sickle", "tailed").status == 200
        assert client.mark(31, "artefact").status == 200
        process.send_signal(signal.SIGKILL)
        process.wait()
    with serving(run, marks=marks) as client:
        sample = client.ask("/api/samples/1").json
        assert {place: said["mark"] for place, said in sample["marks"].items()} == {
            str(30 - sample["first"]): "class",
            str(31 - sample["first"]): "artefact",
        }
        assert sample["marks"][str(30 - sample["first"])]["note"] == "tailed"
        assert client.ask("/api/samples").json["marks"] == [0, 2, 0, 0, 0, 0]
        assert client.ask("/marks.csv").body == marks.read_bytes()


def test_a_port_in_use_is_said_with_a_remedy(run, client):
    with pytest.raises(SettingsError, match=r"port \d+ of 127\.0\.0\.1 is in use") as caught:
        make_server(run, port=int(client.netloc.rpartition(":")[2]))
    assert "--port 0" in caught.value.hint


def test_a_host_that_is_not_ours_is_said(run):
    with pytest.raises(SettingsError, match=r"cannot listen on 192\.0\.2\.1"):
        make_server(run, host="192.0.2.1", port=0)


def test_an_unknown_method_is_named_with_those_there_are(run):
    with pytest.raises(RunFolderError, match="method 'mean' is not in this run") as caught:
        make_server(run, port=0, method="mean")
    assert caught.value.hint == "it has att, default"


def test_another_method_can_be_shown(run):
    with serving(run, method="att") as client:
        assert client.ask("/api/run").json["method"] == "att"
        assert client.numbers(0)["anomaly"].min() > 100


def test_an_unfinished_run_is_refused(tmp_path):
    with pytest.raises(RunFolderError, match="holds no finished run"):
        make_server(tmp_path, port=0)


def test_ctrl_c_ends_it_cleanly(run, tmp_path):
    with started(run, tmp_path / "marks.csv") as process:
        assert Client(address_of(process)).ask("/").status == 200
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert "The viewer has ended" in said


VIEW = """
import signal
import sys
from pathlib import Path
from hemomil.commands.console import Talk
from hemomil.commands.viewing import view
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
view(Path(sys.argv[1]), port=0, marks=Path(sys.argv[2]), open_browser=False, talk=Talk())
"""


class started:  # noqa: N801 - reads as a verb
    """The viewer in a process of its own, ended with the block."""

    def __init__(self, run, marks):
        command = [sys.executable, "-c", VIEW, str(run), str(marks)]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=os.environ | {"COLUMNS": "200"}
        )

    def __enter__(self):
        return self.process

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()


def address_of(process):
    """The address that it prints, once it answers."""
    line = process.stderr.readline()
    found = re.search(r"http://\S+", line)
    assert found, line + process.stderr.read()
    for _ in range(100):
        try:
            Client(found[0]).ask("/")
            return found[0]
        except ConnectionError:
            time.sleep(0.05)
    raise AssertionError("it printed its address and does not answer")
