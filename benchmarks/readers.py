"""200 readers at once on a static web server: what each receives, and how long it takes.

    python benchmarks/readers.py [--readers 200] [--url http://127.0.0.1:8000] [--store NAME]

A reader asks for a chapter and, over six connections, for every file that Chromium asks for on that page. All
begin at the same moment, each with an empty cache, and are spread evenly over the chapters. They run on the
machine that serves, so that they share its cores. Without --url it serves ``_build/html`` with Python's own
server, which sends no gzip. ``--store nginx`` adds the figures to workshop/room.md under that name.
"""

import argparse
import contextlib
import http.client
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import psutil

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "_build" / "html"
STORED = ROOT / "workshop" / "hub" / "readers.csv"
KINDS = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
sys.path[:0] = [str(ROOT / "tests")]


@contextlib.contextmanager
def served(folder):
    """Serve a folder with ``python -m http.server`` and give its address."""
    with tempfile.TemporaryFile("w+") as said:
        command = [
            sys.executable,
            "-u",
            "-m",
            "http.server",
            "--bind",
            "127.0.0.1",
            "--directory",
            folder,
            "0",
        ]
        server = subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL)
        try:
            while "port" not in (line := os.pread(said.fileno(), 200, 0).decode()):
                time.sleep(0.1)
            yield f"http://127.0.0.1:{line.split('port ')[1].split()[0]}"
        finally:
            server.terminate()
            server.wait()


def asked_for(origin, page):
    """Return the addresses that Chromium asks ``origin`` for when it opens a page, the page first."""
    from browser import chromium

    with chromium() as browser:
        tab, found = browser.new_page(), []
        tab.on("request", lambda request: found.append(request.url))
        tab.goto(f"{origin}/{page}", wait_until="networkidle", timeout=120_000)
    return list(dict.fromkeys(url for url in found if urlsplit(url).scheme in ("http", "https")))


class Connection:
    """One connection of a reader: it stays open where the server lets it, and is opened anew where not."""

    def __init__(self, origin, encoding):
        parts = urlsplit(origin)
        self.http = KINDS[parts.scheme](parts.netloc, timeout=300)
        self.headers = {"Accept-Encoding": encoding}

    def fetch(self, url):
        """Return the bytes of a body as they came, and whether it failed."""
        path = urlsplit(url)._replace(scheme="", netloc="").geturl()
        for _ in range(2):  # like a browser: once more where the server closed what was open
            used = self.http.sock is not None
            try:
                self.http.request("GET", path, headers=self.headers)
                answer = self.http.getresponse()
                return len(answer.read()), answer.status != 200
            except (OSError, http.client.HTTPException):
                self.http.close()
                if not used:
                    break
        return 0, True


def reader(start, urls, encoding):
    """Open a page and all its files; return seconds, bytes on the wire and the number of errors."""
    own = threading.local()

    def fetch(url):
        if not hasattr(own, "connection"):
            own.connection = Connection(url, encoding)
        return own.connection.fetch(url)

    with ThreadPoolExecutor(6) as connections:
        start.wait()
        begun = time.perf_counter()
        first = connections.submit(fetch, urls[0]).result()
        sizes, errors = zip(first, *connections.map(fetch, urls[1:]), strict=True)
        return time.perf_counter() - begun, sum(sizes), sum(errors)


def crowd(pages, readers, encoding):
    """Let all readers begin at once and return what each of them saw."""
    start = threading.Event()
    with ThreadPoolExecutor(readers) as people:
        work = [people.submit(reader, start, pages[n % len(pages)], encoding) for n in range(readers)]
        begun = time.perf_counter()
        start.set()
        seen = pd.DataFrame([each.result() for each in work], columns=["seconds", "bytes", "errors"])
    return seen, time.perf_counter() - begun


def spent(origin):
    """Return the seconds of one core that a server on this machine has taken so far, or NaN for another's."""
    port = urlsplit(origin).port
    listening = [c for c in psutil.net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port]
    owners = [psutil.Process(c.pid) for c in listening if c.pid]
    times = [p.cpu_times() for owner in owners for p in (owner, *owner.children(recursive=True))]
    return sum(t.user + t.system for t in times) if times else float("nan")


def row(name, gzip, seen, wall, work):
    """Return the figures of a crowd, as text."""
    p50, p95 = np.quantile(seen["seconds"], [0.5, 0.95])
    return {
        "server": name,
        "gzip": "yes" if gzip else "no",
        "MB a reader": f"{seen['bytes'].mean() / 1e6:.1f}",
        "server: ms of one core a reader": f"{1_000 * work / len(seen):.0f}",
        "pages a second": f"{len(seen) / wall:.1f}",
        "seconds, median": f"{p50:.1f}",
        "95 %": f"{p95:.1f}",
        "most": f"{seen['seconds'].max():.1f}",
        "errors": f"{seen['errors'].sum()}",
    }


def measure(origin, name, readers, gzips):
    """Return a row for each of ``gzips``, a reader that takes gzip or one that does not."""
    chapters = [f"chapters/{path.stem}.html" for path in sorted((ROOT / "chapters").glob("*.ipynb"))]
    pages = [asked_for(origin, page) for page in chapters]
    print(
        f"{readers} readers, {np.mean([len(page) for page in pages]):.0f} files each, {os.cpu_count()} cores"
    )
    rows = []
    for gzip in gzips:
        before = spent(origin)
        seen, wall = crowd(pages, readers, "gzip" if gzip else "identity")
        rows.append(row(name, gzip, seen, wall, spent(origin) - before))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--readers", type=int, default=200, help="how many at once, 1 or more")
    parser.add_argument("--url", help="a server of the built book; by default one is started")
    parser.add_argument("--store", metavar="NAME", help="the server's name in workshop/room.md")
    options = parser.parse_args()
    if options.readers < 1:
        parser.error(f"--readers {options.readers} is not allowed: 1 or more")
    if not options.url and not (BOOK / "index.html").exists():
        print("The book is not built: make book")
        return
    with contextlib.nullcontext(options.url) if options.url else served(BOOK) as origin:
        gzips = [False, True] if options.url else [False]
        name = options.store or options.url or "python -m http.server"
        rows = pd.DataFrame(measure(origin.rstrip("/"), name, options.readers, gzips))
    print(rows.to_string(index=False))
    if options.store:
        old = pd.read_csv(STORED, dtype=str) if STORED.exists() else rows[:0]
        pd.concat([old[old["server"] != name], rows]).to_csv(STORED, index=False)


if __name__ == "__main__":
    main()
