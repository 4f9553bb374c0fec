"""Start-up and memory of learners on a real JupyterHub: one alone, then all at once.

    python benchmarks/hub.py [--users 10] [--chapter 03_1_sgd] [--store]

It starts the hub of workshop/hub/jupyterhub_config.py on this machine. Each learner asks the hub for a
server, the server for a kernel, and sends the kernel the cells of the chapter, one after another, with the
results that this machine has kept. It needs what the book does not: ``.venv/bin/pip install jupyterhub`` and
``npm install configurable-http-proxy``. PSS is memory in which a page that n processes share counts 1/n.
"""

import argparse
import asyncio
import importlib.util
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import psutil
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from dlopt_helpers.lab.memo import cache_dir

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "workshop" / "hub" / "jupyterhub_config.py"
STORED = CONFIG.with_name("hub.csv")
KINDS = {"ipykernel": "kernel", "jupyterhub.singleuser": "server", "configurable-http-proxy": "proxy"}
AsyncHTTPClient.configure(None, max_clients=1_000)


def missing():
    """Return what is not installed, and how to install it."""
    proxy = shutil.which("configurable-http-proxy", path=f"{os.environ['PATH']}{os.pathsep}node_modules/.bin")
    if importlib.util.find_spec("jupyterhub") is None:
        return None, "JupyterHub is missing: .venv/bin/pip install jupyterhub"
    if proxy is None:
        return None, "The hub's proxy is missing: npm install configurable-http-proxy"
    return Path(proxy).absolute(), None


@contextmanager
def hub(proxy):
    """Start a hub and give a function that asks it, and its process."""
    token, port = secrets.token_hex(16), free_port()
    own = {"HUB_PORT": str(port), "HUB_TOKEN": token, "HUB_PROXY": proxy, "DLOPT_RESULTS": cache_dir()}
    environment = {k: v for k, v in os.environ.items() if k != "DLOPT_CACHE"} | {
        k: str(v) for k, v in own.items()
    }
    with tempfile.TemporaryDirectory() as folder, Path(folder, "log").open("w+") as log:
        command = [sys.executable, "-m", "jupyterhub", "-f", CONFIG]
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            yield asker(f"http://127.0.0.1:{port}", token), psutil.Process(process.pid)
        except Exception:
            log.seek(0)
            print(*log.readlines()[-20:], sep="")
            raise
        finally:
            process.terminate()
            process.wait()


def free_port():
    """Return the first of three ports, of which the first was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return min(found.getsockname()[1], 65_000)


def asker(origin, token):
    """Return a function that sends a request to the hub or to a learner's server and returns the answer."""
    headers = {"Authorization": f"token {token}"}

    async def ask(method, path, body=None):
        request = {
            "method": method,
            "headers": headers,
            "request_timeout": 600,
            "allow_nonstandard_methods": True,
        }
        answer = await AsyncHTTPClient().fetch(origin + path, body=json.dumps(body or {}), **request)
        return json.loads(answer.body or "null")

    def channels(path):
        address = origin.replace("http", "ws", 1) + path
        return websocket_connect(
            HTTPRequest(address, headers=headers, request_timeout=600), max_message_size=2**30
        )

    ask.channels = channels
    return ask


async def started(ask, process):
    """Wait until the hub answers."""
    for _ in range(240):
        try:
            return await ask("GET", "/hub/api/")
        except (HTTPClientError, OSError):
            if not process.is_running() or process.status() == psutil.STATUS_ZOMBIE:
                break
            await asyncio.sleep(0.5)
    raise RuntimeError("the hub did not start; its last words stand above")


async def learner(ask, name, codes):
    """Start a server and a kernel, run a chapter, and return the seconds from the click to each."""
    await ask("POST", f"/hub/api/users/{name}")
    start, seconds = time.perf_counter(), {}
    await ask("POST", f"/hub/api/users/{name}/server")
    while not (server := (await ask("GET", f"/hub/api/users/{name}"))["servers"].get("", {})).get("ready"):
        if not server.get("pending"):
            raise RuntimeError(f"the server of {name} did not start")
        await asyncio.sleep(0.5)
    seconds["server ready"] = time.perf_counter() - start
    kernel = (await ask("POST", f"/user/{name}/api/kernels", {"name": "python3"}))["id"]
    channel = await ask.channels(f"/user/{name}/api/kernels/{kernel}/channels")
    for number, code in enumerate(codes):
        await run_cell(channel, code)
        if number == 0:
            seconds["first cell done"] = time.perf_counter() - start
    seconds["chapter done"] = time.perf_counter() - start
    channel.close()
    return seconds


async def run_cell(channel, code):
    """Send a cell to a kernel and wait until it is done."""
    header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "version": "5.3"}
    header |= {"username": "learner", "session": "benchmark", "date": ""}
    content = {"code": code, "silent": False, "store_history": True, "allow_stdin": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    await channel.write_message(json.dumps(message))
    while True:
        said = await channel.read_message()
        if said is None:
            raise RuntimeError("the kernel's connection was closed")
        if isinstance(said, bytes):  # data of a widget
            continue
        said = json.loads(said)
        own = said["parent_header"].get("msg_id") == header["msg_id"]
        if own and said["msg_type"] == "execute_reply":
            if said["content"]["status"] != "ok":
                raise RuntimeError("\n".join(said["content"].get("traceback", [str(said["content"])])))
            return


def look(process):
    """Return kind, memory in megabytes and seconds of computing of the hub and of all that it started."""
    rows = []
    for one in [process, *process.children(recursive=True)]:
        try:
            line, memory, spent = " ".join(one.cmdline()), one.memory_full_info(), one.cpu_times()
        except psutil.Error:  # ended meanwhile
            continue
        kind = next(
            (kind for sign, kind in KINDS.items() if sign in line), "hub" if one == process else "other"
        )
        rows.append((one.pid, kind, memory.rss / 1e6, memory.pss / 1e6, spent.user + spent.system))
    return pd.DataFrame(rows, columns=["process", "kind", "rss", "pss", "cpu"])


async def together(ask, process, names, codes):
    """Let learners work at the same time; return their seconds, and what was seen of all processes."""
    seen, work = [], asyncio.gather(*(learner(ask, name, codes) for name in names))
    while not work.done():
        seen.append(await asyncio.to_thread(look, process))
        await asyncio.wait([work], timeout=1)
    seconds = pd.DataFrame(await work)
    for name in names:
        await ask("DELETE", f"/hub/api/users/{name}/server")
    return seconds, seen


def table(seconds, seen):
    """Return one row for each figure, as text."""
    peaks = pd.concat(seen).groupby(["kind", "process"])[["rss", "pss", "cpu"]].max()
    total = max(look["pss"].sum() for look in seen)
    rows = {
        f"seconds to {what}, median (most)": f"{s.median():.0f} ({s.max():.0f})"
        for what, s in seconds.items()
    }
    for kind in ("hub", "proxy", "server", "kernel"):
        each = peaks.loc[kind]
        rows[f"{kind}: RSS, PSS at the most, MB"] = f"{each['rss'].max():.0f}, {each['pss'].max():.0f}"
    for kind in ("server", "kernel"):
        rows[f"{kind}: seconds of one core, median"] = f"{peaks.loc[kind]['cpu'].median():.0f}"
    rows["all together: PSS, MB"] = f"{total:.0f}"
    rows["each further learner: PSS, MB"] = (
        f"{peaks.loc[['server', 'kernel']]['pss'].sum() / len(seconds):.0f}"
    )
    return rows


async def measure(proxy, users, codes):
    """Return the table of one learner alone and of all of them."""
    with hub(proxy) as (ask, process):
        await started(ask, process)
        columns = {}
        for count in sorted({1, users}):
            names = [f"learner-{count}-{n}" for n in range(count)]
            columns["one alone" if count == 1 else f"{count} at once"] = table(
                *await together(ask, process, names, codes)
            )
    return pd.DataFrame(columns).rename_axis("what")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=10, help="learners at once, 1 or more")
    parser.add_argument("--chapter", default="03_1_sgd", help="name of a file in chapters/, without .ipynb")
    parser.add_argument("--store", action="store_true", help="make the figures those of workshop/room.md")
    options = parser.parse_args()
    path = ROOT / "chapters" / f"{options.chapter}.ipynb"
    if options.users < 1:
        parser.error(f"--users {options.users} is not allowed: 1 or more")
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in path.parent.glob("*.ipynb")))
        parser.error(f"--chapter {options.chapter} is not allowed: one of {known}")
    proxy, lacking = missing()
    if lacking:
        print(lacking)
        return
    codes = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    figures = asyncio.run(measure(proxy, options.users, codes))
    from dlopt_helpers.lab.measure import device_name  # loads PyTorch

    load = np.mean(os.getloadavg()[1:])
    print(f"{options.chapter}, {os.cpu_count()} cores ({device_name('cpu')}), load {load:.1f}")
    print(figures.to_string())
    if options.store:
        figures.to_csv(STORED)


if __name__ == "__main__":
    main()
