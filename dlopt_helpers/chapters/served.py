"""Ask the server of :mod:`dlopt_helpers.chapters.serve` from a notebook."""

import contextlib
import functools
import json
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from dlopt_helpers.chapters import serve

JSON = {"Content-Type": "application/json"}


@contextlib.contextmanager
def served(onnx):
    """Serve a classifier from a process of its own, which ends with the ``with``, come what may.

    Args:
      onnx: bytes of the file of a classifier.

    Returns:
      A function. With examples, an array (n, inputs), it returns a dict of their ``probabilities`` and
      ``classes``; without, a dict of what is served: ``inputs``, ``classes``, and the ``bytes`` of the file.
      It raises ValueError with what the server says of examples that are not allowed.

    Raises:
      ValueError: if the server refuses the file.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> from dlopt_helpers.lab.onnxrt import export
      >>> with served(export(mlp())) as ask:
      ...     len(ask(np.zeros((3, 40)))["classes"])
      3
    """
    with listening(onnx) as address:
        yield functools.partial(_ask, address)


@contextlib.contextmanager
def listening(onnx):
    """As :func:`served`, but return the address alone."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(onnx)
        # -P: without it the file's neighbours could be imported, too.
        command = [sys.executable, "-P", serve.__file__, str(file), "--port", "0"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, **pipes) as process:
            try:
                address = process.stdout.readline().strip()
                if not address:
                    raise ValueError(f"onnx cannot be served: {process.stderr.read().strip()}")
                yield address
            finally:
                process.kill()


def _ask(address, x=None):
    body = None if x is None else json.dumps({"x": np.asarray(x).tolist()}).encode()
    # The address is on this machine: no proxy knows it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(address, body, JSON), timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        raise ValueError(json.load(error)["error"]) from None
