"""What the tests of the viewer do with its page."""

import re


def opened(page, client, name):
    with page.expect_response(re.compile("/pictures/.*/images/")):
        page.goto(f"{client.url}#/sample/{name}")
    page.wait_for_function("document.querySelector('#field').getBoundingClientRect().height > 200")
    return page


def column(page, number):
    return page.locator(f"#samples tbody tr td:nth-child({number})").all_inner_texts()


def drawn(page, canvas="#field"):
    """What the canvas shows, after the next frame."""
    script = (
        "id => new Promise(done => requestAnimationFrame(() => done(document.querySelector(id).toDataURL())))"
    )
    return page.evaluate(script, canvas)


def point_at_a_cell(page, canvas, step=14):
    """Move over the canvas until a cell is under the pointer; returns what is said of it."""
    page.locator(canvas).scroll_into_view_if_needed()
    frame = page.locator(canvas).bounding_box()
    for y in range(step, int(frame["height"]), step):
        for x in range(step, int(frame["width"]), step):
            page.mouse.move(frame["x"] + x, frame["y"] + y)
            if page.locator("#tip").is_visible():
                return page.locator("#tip").inner_text()
    raise AssertionError(f"no cell in {canvas}")
