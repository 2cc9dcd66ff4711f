"""What the tests of pages share: Chromium, and a page that notes what goes wrong and what it asks for."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
SWITCHES = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@dataclass
class Watched:
    """A page, the errors of its console, and the addresses that it asked for."""

    page: "sync_api.Page"
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator["sync_api.Browser"]:
    """Chromium of the system, not Playwright's own; skipped where there is none."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium, args=list(SWITCHES))
        yield found
        found.close()


@pytest.fixture
def watched(browser: "sync_api.Browser") -> Iterator[Watched]:
    """A fresh page, watched."""
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    seen = Watched(page=page)
    page.on("console", lambda said: seen.errors.append(said.text) if said.type == "error" else None)
    page.on("pageerror", lambda error: seen.errors.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    yield seen
    page.close()


@pytest.fixture
def page(watched: Watched) -> "sync_api.Page":
    """The page of `watched`."""
    return watched.page
