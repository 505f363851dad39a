"""Look at every page of the site as readers do: ``look_at_site.py build/site [FOLDER]``, screenshots into FOLDER.

Fails at: an error on the console, anything fetched from another host or not there, a link or an anchor that leads
nowhere, a picture that does not load, a page wider than its frame, blocks that overlap, a page that is not as light or
dark as its reader wants it, a search that does not find what is there. Needs playwright and Debian's chromium.
"""

import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

from playwright.sync_api import Browser, Page, sync_playwright

FRAMES = {"desk": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
READERS = {
    f"{frame}-{scheme}": {"viewport": size, "color_scheme": scheme}
    for frame, size in FRAMES.items()
    for scheme in ("light", "dark")
}
SEARCHED = {"force_rollback": "how-to/testing.html", "LDB301": "reference/errors.html"}
LOOK = """() => {
  const blocks = [...document.querySelectorAll('article section > *, article li > *, article dd > *')]
    .filter(block => getComputedStyle(block).position === 'static' && block.offsetHeight);
  const overlaps = blocks.filter(block => {
    const next = block.nextElementSibling;
    return next && blocks.includes(next)
      && next.getBoundingClientRect().top < block.getBoundingClientRect().bottom - 1;
  });
  return {
    links: [...document.querySelectorAll('a[href]')].map(link => link.href),
    ids: [...document.querySelectorAll('[id]')].map(one => one.id),
    wide: Math.max(...[...document.querySelectorAll('html, .main, .content')]
      .map(frame => frame.scrollWidth - frame.clientWidth)),
    pictures: [...document.images].filter(one => !one.complete || !one.naturalWidth).map(one => one.src),
    ground: getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number),
    overlaps: overlaps.map(block => block.textContent.trim().slice(0, 60)),
  };
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def look(page: Page, url: str, found: list[str]) -> dict:
    """Open a page; what is wrong goes into `found`."""
    page.goto(url)
    seen = page.evaluate(LOOK)
    if seen["wide"] > 0:
        found.append(f"{url} is {seen['wide']} pixels wider than its frame")
    found += [f"{url} shows no {picture}" for picture in seen["pictures"]]
    found += [f"{url} has blocks that overlap: {text!r}" for text in seen["overlaps"]]
    return seen


def read(
    browser: Browser, reader: str, site: str, pages: list[str], shots: Path | None
) -> Iterator[str]:
    """Give what is wrong with the pages for one kind of reader."""
    found: list[str] = []
    page = browser.new_context(**READERS[reader]).new_page()
    page.on(
        "console", lambda said: said.type == "error" and found.append(f"{page.url}: {said.text}")
    )
    page.on("pageerror", lambda error: found.append(f"{page.url}: {error}"))
    page.on(
        "request",
        lambda asked: asked.url.startswith((site, "data:")) or found.append(f"asks {asked.url}"),
    )
    seen = {}
    for name in pages:
        seen[site + name] = look(page, site + name, found)
        if (max(seen[site + name]["ground"]) < 128) != (READERS[reader]["color_scheme"] == "dark"):
            found.append(f"{site}{name} is not {READERS[reader]['color_scheme']}")
        if shots:
            page.screenshot(path=shots / f"{name.replace('/', '.')}.{reader}.png")
    search(page, site, found)
    yield from found
    yield from broken_links(seen, site)


def search(page: Page, site: str, found: list[str]) -> None:
    """Look for some words as a reader does."""
    for words, wanted in SEARCHED.items():
        page.goto(site + "index.html")
        page.evaluate(
            """words => {
                const box = document.querySelector('input[name=q]');
                box.value = words;
                box.form.submit();
            }""",
            words,
        )
        page.wait_for_url("**/search.html*")
        page.wait_for_function(
            "document.querySelector('#search-results p.search-summary')?.textContent.match(/\\d/)"
        )
        links = page.eval_on_selector_all("#search-results li a", "all => all.map(one => one.href)")
        if not any(link.startswith(site + wanted) for link in links):
            found.append(f"the search for {words} does not find {wanted}, but {links}")


def broken_links(seen: dict[str, dict], site: str) -> Iterator[str]:
    """Give the links to pages and places that are not there."""
    for url, page in seen.items():
        for link in page["links"]:
            target, place = urldefrag(link)
            if not link.startswith(site):
                continue
            if target not in seen:
                yield f"{url} links to {link}, which is not there"
            elif place and unquote(place) not in seen[target]["ids"]:
                yield f"{url} links to {link}, which has no such place"


def main(folder: Path, shots: Path | None = None) -> int:
    """Give 1 if something is wrong."""
    pages = sorted(str(page.relative_to(folder)) for page in folder.rglob("*.html"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    site = f"http://127.0.0.1:{server.server_port}/"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        found = [
            f"{reader}: {wrong}"
            for reader in READERS
            for wrong in read(browser, reader, site, pages, shots)
        ]
    print(
        *found,
        f"{len(pages)} pages looked at as {' and '.join(READERS)}, {len(found)} things wrong",
        sep="\n",
    )
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
