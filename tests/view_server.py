"""A viewer that runs beside the test, and questions to it that a browser would never ask."""

import asyncio
import http.client
import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import numpy as np

from hemomil.commands.viewing import make_server


@dataclass(frozen=True)
class Answer:
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def text(self):
        return self.body.decode()

    @property
    def json(self):
        """As a browser reads it: NaN is refused."""
        return json.loads(self.body, parse_constant=_refuse)


def _refuse(name):
    raise AssertionError(f"{name} is no JSON")


@dataclass(frozen=True)
class Client:
    url: str

    @property
    def netloc(self):
        return urlsplit(self.url).netloc

    def ask(self, path, method="GET", body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", urlsplit(self.url).port, timeout=20)
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, {"Host": self.netloc, **sent})
        answer = connection.getresponse()
        found = Answer(answer.status, answer.headers, answer.read())
        connection.close()
        return found

    def mark(self, row, mark, label="", note="", **headers):
        sent = {"Origin": f"http://{self.netloc}", "Content_Type": "application/json"} | headers
        body = json.dumps({"row": row, "mark": mark, "label": label, "note": note})
        return self.ask("/api/marks", "POST", body, **sent)

    def numbers(self, index):
        """Column name to values, as the page reads them."""
        columns = self.ask(f"/api/samples/{index}").json["columns"]
        values = np.frombuffer(self.ask(f"/api/samples/{index}/numbers").body, "<f4")
        return dict(zip(columns, values.reshape(len(columns), -1), strict=True))


@contextmanager
def serving(run, **options):
    """The viewer of a run, on a free port."""
    viewer = make_server(run, **({"port": 0} | options))
    loop = asyncio.new_event_loop()
    task = loop.create_task(viewer.serve())
    thread = threading.Thread(target=_until_cancelled, args=(loop, task))
    thread.start()
    try:
        yield Client(viewer.url)
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def _until_cancelled(loop, task):
    asyncio.set_event_loop(loop)
    loop.run_until_complete(asyncio.wait([task]))
    loop.run_until_complete(loop.shutdown_asyncgens())
