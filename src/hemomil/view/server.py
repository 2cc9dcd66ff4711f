"""Serve the viewer on this machine: its addresses, and the server that answers them."""

import asyncio
import errno
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from tornado.web import Application, HTTPError

from hemomil.errors import HemomilError, ImageError, SettingsError
from hemomil.view.answers import Site, list_answer, numbers_answer, run_answer, sample_answer, to_json
from hemomil.view.guard import Files, Guard, Guarded
from hemomil.view.marks import KINDS, LONGEST_LABEL, LONGEST_NOTE

STATIC = Path(__file__).parent / "static"
LARGEST_REQUEST = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """A server that holds its port and is ready to answer."""

    application: Application
    socket: socket.socket
    url: str

    async def serve(self) -> None:
        """Answer until cancelled."""
        server = HTTPServer(self.application, max_body_size=LARGEST_REQUEST)
        server.add_socket(self.socket)
        try:
            await asyncio.Event().wait()
        finally:
            server.stop()


def open_viewer(site: Site, *, host: str, port: int, token: str | None) -> Viewer:
    """Take the port; 0 takes a free one. Raises SettingsError where it is taken or the host is not ours."""
    taken = _bind(host, port)
    number = taken.getsockname()[1]
    return Viewer(
        application=_application(site, Guard(host=host, port=number, token=token)),
        socket=taken,
        url=f"http://{_reached_as(host)}:{number}/" + (f"?token={token}" if token else ""),
    )


def _reached_as(host: str) -> str:
    """What a browser is told: all addresses of this computer are reached by its name."""
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _bind(host: str, port: int) -> socket.socket:
    try:
        taken = socket.create_server((host, port), family=AF_INET6 if ":" in host else AF_INET)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise SettingsError(
                f"port {port} of {host} is in use",
                hint="is the viewer open already? End it, or choose another port: --port 0 takes a free one",
            ) from None
        raise SettingsError(
            f"cannot listen on {host}, port {port}: {error.strerror or error}",
            hint="--host names an address of this computer; ports below 1024 belong to the system",
        ) from None
    taken.setblocking(False)
    return taken


def _application(site: Site, guard: Guard) -> Application:
    which: dict[str, Any] = {"site": site}
    pictures = f"/pictures/{site.key}"
    box = r"(\d{1,6}),(\d{1,6}),(\d{1,6}),(\d{1,6})"
    return Application(
        [
            (r"/", Page),
            (r"/static/(.*)", Files, {"path": str(STATIC)}),
            (r"/api/run", Run, which),
            (r"/api/samples", Samples, which),
            (r"/api/samples/(\d{1,9})", Sample, which),
            (r"/api/samples/(\d{1,9})/numbers", Numbers, which),
            (r"/api/images/(\d{1,9})", ImageSize, which),
            (r"/api/marks", Marks, which),
            (r"/marks\.csv", MarksFile, which),
            (pictures + r"/images/(\d{1,9})/" + box + r"/(\d{1,4})", Part, which),
            (pictures + r"/cells/(\d{1,9})", CellPicture, which),
        ],
        guard=guard,
        default_handler_class=Nothing,
        log_function=lambda handler: None,  # addresses hold the token
    )


class Nothing(Guarded):
    """Any other address."""

    def get(self) -> None:
        """There is none."""
        raise HTTPError(404)


class Page(Guarded):
    """The page; its scripts ask for everything else."""

    def get(self) -> None:
        """index.html, which holds nothing of the run."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.write((STATIC / "index.html").read_bytes())


class OfSite(Guarded):
    """An answer made from the run."""

    def initialize(self, site: Site) -> None:
        """Given by the address."""
        self.site = site

    def sample_number(self, text: str) -> int:
        """A sample that exists."""
        return _below(text, len(self.site.shown.samples))

    def answer(self, value: Any) -> None:
        """A value as JSON."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        self.write(to_json(value))

    async def beside(self, make: Callable[..., Any], *details: Any) -> Any:
        """What takes its time is made beside the loop that answers."""
        return await IOLoop.current().run_in_executor(self.site.pictures.workers, make, *details)

    def problem(self, error: ImageError) -> None:
        """Why there is no picture; a blind reader is not told the name of the file."""
        self.answer({"problem": "" if self.site.blind else error.message})

    async def picture(self, make: Callable[..., bytes], *details: Any) -> None:
        """A picture; 404 with the reason where its image cannot be read."""
        try:
            content = await self.beside(make, *details)
        except ImageError as error:
            self.set_status(404)
            self.problem(error)
            return
        self.set_header("Content-Type", "image/jpeg")
        self.set_header("Cache-Control", "private, max-age=86400, immutable")
        self.write(content)


class Run(OfSite):
    """What the page needs to know once."""

    def get(self) -> None:
        """As JSON."""
        self.answer(run_answer(self.site))


class Samples(OfSite):
    """All samples."""

    def get(self) -> None:
        """As JSON, column by column."""
        self.answer(list_answer(self.site))


class Sample(OfSite):
    """One sample."""

    def get(self, number: str) -> None:
        """As JSON."""
        self.answer(sample_answer(self.site, self.sample_number(number)))


class Numbers(OfSite):
    """The numbers of one sample's cells."""

    def get(self, number: str) -> None:
        """As 32-bit floats."""
        self.set_header("Content-Type", "application/octet-stream")
        self.write(numbers_answer(self.site, self.sample_number(number)))


class ImageSize(OfSite):
    """Whether an image can be shown, and how large it is."""

    async def get(self, number: str) -> None:
        """width and height, or the problem."""
        image = _below(number, len(self.site.shown.cells.images.names))
        try:
            width, height = await self.beside(self.site.pictures.size, image)
        except ImageError as error:
            self.problem(error)
        else:
            self.answer({"width": width, "height": height})


class Part(OfSite):
    """A part of an image, no wider than asked for."""

    async def get(self, number: str, x0: str, y0: str, x1: str, y1: str, width: str) -> None:
        """As JPEG."""
        image = _below(number, len(self.site.shown.cells.images.names))
        box = int(x0), int(y0), int(x1), int(y1)
        await self.picture(self.site.pictures.part, image, box, max(1, int(width)))


class CellPicture(OfSite):
    """One cell, by its row."""

    async def get(self, number: str) -> None:
        """As JPEG."""
        cells = self.site.shown.cells
        row = _below(number, len(cells.ids))
        image = int(cells.images.codes[row])
        if image < 0:
            raise HTTPError(404)
        await self.picture(self.site.pictures.cell, image, cells.box(row))


class Marks(OfSite):
    """The expert's marks."""

    def post(self) -> None:
        """Take {row, mark, label, note}; answer what was written."""
        said = self._asked()
        try:
            written = self.site.marks.say(self.site.shown.cells, **said)
        except HemomilError as error:
            self.set_status(400)
            self.answer({"problem": str(error)})
        except OSError as error:
            self.set_status(507)
            self.answer({"problem": f"{self.site.marks.path.name} cannot be written: {error.strerror}"})
        else:
            self.answer(written)

    def _asked(self) -> dict[str, Any]:
        try:
            said = json.loads(self.request.body)
            row, mark, label, note = (said[name] for name in ("row", "mark", "label", "note"))
        except (ValueError, KeyError, TypeError):
            raise HTTPError(400, reason="A mark is an object of row, mark, label and note") from None
        if type(row) is not int or not 0 <= row < len(self.site.shown.cells.ids):
            raise HTTPError(400, reason="No such cell")
        if mark not in KINDS:
            raise HTTPError(400, reason="No such mark")
        if not isinstance(label, str) or not isinstance(note, str):
            raise HTTPError(400, reason="Label and note are text")
        if len(label) > LONGEST_LABEL or len(note) > LONGEST_NOTE:
            raise HTTPError(400, reason="Too long")
        return {"row": row, "mark": mark, "label": label.strip(), "note": note.strip()}


class MarksFile(OfSite):
    """marks.csv as it lies in the folder."""

    def get(self) -> None:
        """For downloading; empty as long as nothing is marked."""
        path = self.site.marks.path
        self.set_header("Content-Type", "text/csv; charset=utf-8")
        self.set_header("Content-Disposition", 'attachment; filename="marks.csv"')
        self.write(path.read_bytes() if path.is_file() else b"cell_id,mark,class,note,time\n")


def _below(text: str, limit: int) -> int:
    """A number from an address, if there are so many."""
    if int(text) >= limit:
        raise HTTPError(404)
    return int(text)
