"""Nobody but the user of this machine, or who has the token, reaches the viewer; it opens no other file."""

import hmac
import re
import socket
from urllib.parse import quote

import pytest

from hemomil.commands.viewing import make_server
from hemomil.errors import SettingsError
from hemomil.view import guard
from view_runs import make_run
from view_server import serving

TOKEN = "a-token-long-enough"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("safe"))


@pytest.fixture(scope="module")
def client(run, tmp_path_factory):
    with serving(run, marks=tmp_path_factory.mktemp("marks") / "marks.csv") as client:
        yield client


@pytest.fixture(scope="module")
def guarded(run):
    with serving(run, token=TOKEN) as client:
        yield client


def key(client):
    return client.ask("/api/run").json["pictures"]


# Who may ask


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:1", "127.0.0.1.evil.example", "10.0.0.7", "[::1"]
)
def test_a_strange_host_name_is_refused(client, host):
    answer = client.ask("/api/samples", Host=host)
    assert answer.status == 403
    assert b"s00" not in answer.body


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9", "127.0.0.1:9", "[::1]:8123"])
def test_names_of_this_machine_are_served_at_any_port_of_a_tunnel(client, host):
    assert client.ask("/api/samples", Host=host).status == 200


def test_open_to_others_it_knows_addresses_and_its_own_name_only():
    open_to_all = guard.Guard(host="0.0.0.0", port=8123, token=TOKEN)
    assert open_to_all.knows_host("10.0.0.7:8123")
    assert open_to_all.knows_host(socket.gethostname())
    assert not open_to_all.knows_host("evil.example:8123")


def test_open_to_others_it_is_reached_by_the_name_of_this_machine(run):
    viewer = make_server(run, host="0.0.0.0", port=0)
    with viewer.socket:
        assert viewer.url.startswith(f"http://{socket.gethostname()}:")


def test_it_listens_on_this_machine_only(run):
    viewer = make_server(run, port=0)
    with viewer.socket:
        assert viewer.socket.getsockname()[0] == "127.0.0.1"
        assert "token" not in viewer.url


def test_open_to_others_it_makes_a_token_that_cannot_be_guessed(run):
    viewers = [make_server(run, host="0.0.0.0", port=0) for _ in range(2)]
    tokens = [viewer.url.partition("?token=")[2] for viewer in viewers]
    assert len(set(tokens)) == 2
    assert all(len(token) >= 32 for token in tokens)
    for viewer in viewers:
        viewer.socket.close()


def test_a_token_that_is_easily_guessed_is_refused(run):
    with pytest.raises(SettingsError, match="the token is too short"):
        make_server(run, port=0, token="1234")


@pytest.mark.parametrize(
    "path", ["/", "/static/main.js", "/api/run", "/api/samples", "/api/samples/0/numbers", "/marks.csv", "/x"]
)
@pytest.mark.parametrize("token", [None, "a-token-long-enougH", "ä"])
def test_without_the_token_nothing_is_answered(guarded, path, token):
    answer = guarded.ask(path if token is None else f"{path}?token={quote(token)}")
    assert answer.status == 403
    assert "Set-Cookie" not in answer.headers


def test_the_token_becomes_a_cookie_that_scripts_and_other_sites_do_not_get(guarded):
    answer = guarded.ask(f"/?token={TOKEN}")
    assert answer.status == 200
    cookie = answer.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert guarded.ask("/api/run", Cookie=cookie.partition(";")[0]).status == 200
    wrong = re.sub("=[^;]*", "=a-token-long-enougH", cookie.partition(";")[0])
    assert guarded.ask("/api/run", Cookie=wrong).status == 403


def test_tokens_are_compared_in_constant_time(guarded, monkeypatch):
    compared = []

    def compare(given, expected):
        compared.append((given, expected))
        return hmac.compare_digest(given, expected)

    monkeypatch.setattr(guard, "compare_digest", compare)
    guarded.ask("/?token=wrong")
    assert (b"wrong", TOKEN.encode()) in compared


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Content_Type": "text/plain"}, 415),
        ({"Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"Host": "evil.example", "Origin": "http://evil.example"}, 403),
    ],
)
def test_a_page_of_another_site_cannot_mark(client, sent, status):
    assert client.mark(0, "unsure", **sent).status == status
    assert sum(client.ask("/api/samples").json["marks"]) == 0


def test_marking_needs_the_token_too(guarded):
    assert guarded.mark(0, "unsure").status == 403


def test_a_request_that_is_too_large_is_refused_before_it_is_read(client):
    sent = {"Origin": f"http://{client.netloc}", "Content_Type": "application/json"}
    assert client.ask("/api/marks", "POST", Content_Length="10000000", **sent).status in (400, 413)


# What browsers may do with an answer


@pytest.mark.parametrize("path", ["/", "/api/run", "/static/main.js", "/nowhere", "/api/samples/99"])
def test_every_answer_binds_the_browser(client, path):
    headers = client.ask(path).headers
    rules = dict(rule.split(" ", 1) for rule in headers["Content-Security-Policy"].split("; "))
    assert rules == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "Access-Control-Allow-Origin" not in headers


def test_only_pictures_are_kept_by_the_browser_and_at_an_address_of_this_start(run, client):
    assert client.ask("/api/samples/0").headers["Cache-Control"] == "no-store"
    assert "immutable" in client.ask(f"{key(client)}/cells/0").headers["Cache-Control"]
    with serving(run) as another:
        assert key(another) != key(client)


# No file beside the run


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py",
        "/static/%2e%2e/server.py",
        "/static/..%2fserver.py",
        "/static/..%5cserver.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/../../etc/passwd",
        "/api/images/..%2f..%2frun.json",
        "/pictures/../run.json",
        "/marks.csv/../run.json",
        "/static/",
    ],
)
def test_no_path_leads_out(client, path):
    answer = client.ask(path)
    assert answer.status in (403, 404)
    assert len(answer.body) < 200


@pytest.mark.parametrize("path", ["images/0/0,0,9,9/..", "images/run.json/0,0,9,9/9", "cells/144"])
def test_pictures_are_asked_for_by_number_only(client, path):
    assert client.ask(f"{key(client)}/{path}").status == 404
