"""A web page of a run on this machine: samples, cells in their images, and an expert's marks. No torch."""

from hemomil.view.answers import SENT, Site
from hemomil.view.data import Cells, Shown, read_shown
from hemomil.view.guard import is_loopback
from hemomil.view.marks import MarkBook, by_row
from hemomil.view.pictures import Pictures
from hemomil.view.server import Viewer, open_viewer

__all__ = [
    "SENT",
    "Cells",
    "MarkBook",
    "Pictures",
    "Shown",
    "Site",
    "Viewer",
    "by_row",
    "is_loopback",
    "open_viewer",
    "read_shown",
]
