"""The classifier in service: what it answers, what it refuses, and that it ends."""

import ast
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from scipy.special import softmax

from dlopt_helpers.chapters import serve
from dlopt_helpers.chapters.served import listening, served
from dlopt_helpers.lab import onnxrt
from dlopt_helpers.lab.models import cnn, mlp

COMMAND = [sys.executable, "-m", "dlopt_helpers.chapters.serve"]
GOOD = [[0.5] * 40]


@pytest.fixture(scope="module", autouse=True)
def buffered():
    """Python's own way of writing, so that a line that is not flushed is not seen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTHONUNBUFFERED", raising=False)
        yield


@pytest.fixture(scope="module")
def file():
    return onnxrt.export(mlp(hidden=8))


@pytest.fixture(scope="module")
def address(file):
    with listening(file) as address:
        yield address.removeprefix("http://")


@pytest.fixture
def processes(monkeypatch):
    """All processes that are started."""
    found, popen = [], subprocess.Popen

    def noted(*args, **options):
        found.append(popen(*args, **options))
        return found[-1]

    monkeypatch.setattr(subprocess, "Popen", noted)
    return found


def post(address, body, **headers):
    """Return the status and the content of the answer to a body as it is."""
    connection = http.client.HTTPConnection(address, timeout=20)
    connection.request("POST", "/", body, headers)
    answer = connection.getresponse()
    assert answer.getheader("Content-Type") == "application/json"
    status, content = answer.status, json.loads(answer.read(), parse_constant=pytest.fail)
    connection.close()
    return status, content


# --- answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", [mlp, cnn])
@pytest.mark.parametrize("form", ["float", "int8"])
def test_answers_as_the_file_does_here(network, form):
    model = network()
    x = np.random.default_rng(0).normal(size=(300, 40)).astype("float32")
    for weight in model.parameters():
        weight.data.mul_(3)  # else an untrained network has one class for all
    onnx_bytes = onnxrt.export(model)
    if form == "int8":
        onnx_bytes = onnxrt.quantize_static(onnx_bytes, x)
    with served(onnx_bytes) as ask:
        assert ask() == {"inputs": 40, "classes": 10, "bytes": len(onnx_bytes)}
        first, second = ask(x), ask(x[:1])  # one after another
    logits = onnxrt.load(onnx_bytes)(x)
    assert set(first) == {"probabilities", "classes"}
    assert abs(first["probabilities"] - softmax(logits, axis=1)).max() < 1e-6
    assert first["classes"] == logits.argmax(1).tolist() and len(set(first["classes"])) > 1
    assert abs(np.array(second["probabilities"]) - first["probabilities"][:1]).max() < 1e-6


def test_large_logits_do_not_overflow():
    model = mlp(hidden=8)
    model[-1].weight.data.mul_(1e5)
    with served(onnxrt.export(model)) as ask:
        p = np.array(ask(np.random.default_rng(0).normal(size=(50, 40)))["probabilities"])
        with pytest.raises(ValueError, match="overflows"):  # JSON has no word for what comes out
            ask([[3e38] * 40, [-3e38] * 40])
    assert abs(p.sum(1) - 1).max() < 1e-12 and (p.max(1) > 0.99).mean() > 0.9


def test_whole_numbers_and_the_most_examples_are_allowed(address):
    for x in ([[1] * 40], [[-1.2345678901234567e-300] * 40] * serve.MOST, [[3e38, 0.0] * 20]):
        status, answer = post(address, json.dumps({"x": x, "note": "not read"}))
        assert status == 200 and len(answer["classes"]) == len(answer["probabilities"]) == len(x)


def test_answers_while_another_connection_is_silent(address):
    host, port = address.split(":")
    with socket.create_connection((host, int(port))):
        assert post(address, json.dumps({"x": GOOD}))[0] == 200


def test_asks_this_machine_whatever_the_proxy(file, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    with served(file) as ask:
        assert ask()["inputs"] == 40


# --- refusals -------------------------------------------------------------------------------------

BAD = {
    "nothing": (b"", "no JSON"),
    "no JSON": (b"x=1", "no JSON"),
    "no text": (b"\xff\xfe\xfa", "no JSON"),
    "half": (b'{"x": [[0.5, ', "no JSON"),
    "too deep": (b"[" * 200_000, "no JSON"),
    "no object": (json.dumps(GOOD), "no JSON"),
    "another name": (json.dumps({"y": GOOD}), "no JSON"),
    "no examples": ('{"x": []}', "shape (0,)"),
    "empty example": ('{"x": [[]]}', "shape (1, 0)"),
    "one number": ('{"x": 3}', "shape ()"),
    "text": ('{"x": "abc"}', "shape ()"),
    "one row": (json.dumps({"x": GOOD[0]}), "shape (40,)"),
    "too narrow": (json.dumps({"x": [[0.5] * 39] * 3}), "shape (3, 39)"),
    "too wide": (json.dumps({"x": [[0.5] * 41]}), "shape (1, 41)"),
    "ragged": (json.dumps({"x": [[0.5] * 40, [0.5] * 39]}), "shape (2,)"),
    "three axes": (json.dumps({"x": [[[0.5]] * 40]}), "shape (1, 40, 1)"),
    "too many": (json.dumps({"x": [[0] * 40] * 1_025}), "shape (1025, 40)"),
    "words": (json.dumps({"x": [["0.5"] * 40]}), "no number"),
    "nothing in it": (json.dumps({"x": [[0.5] * 39 + [None]]}), "no number"),
    "truth": (json.dumps({"x": [[0.5] * 39 + [True]]}), "no number"),
    "nan": (json.dumps({"x": [[0.5] * 39 + [float("nan")]]}), "not finite"),
    "inf": (json.dumps({"x": [[0.5] * 39 + [float("-inf")]]}), "not finite"),
    "a long whole number": (json.dumps({"x": [[10**400] * 40]}), "not finite"),
    "too large for float32": (json.dumps({"x": [[1e39] * 40]}), "too large"),
    "too long": (b" " * 5_000_000 + json.dumps({"x": GOOD}).encode(), "Content-Length is 5000"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_told_what_is_allowed(address, case):
    body, words = BAD[case]
    status, answer = post(address, body)
    assert status == 400 and set(answer) == {"error"}
    assert words in answer["error"]
    assert "1 to 1024 examples of 40 finite numbers" in answer["error"] and "1310720 bytes" in answer["error"]
    assert post(address, json.dumps({"x": GOOD}))[0] == 200  # and it goes on


@pytest.mark.parametrize("length", ["-1", "1e3", "²", "9" * 30, "9" * 5_000, "99999999"])
def test_a_false_length_is_refused_at_once(address, length):
    status, answer = post(address, b"", **{"Content-Length": length.encode("latin-1")})
    assert status == 400 and "1310720 bytes" in answer["error"]


def test_ask_raises_what_the_server_says(file):
    with served(file) as ask:
        for x in (np.zeros((2, 39)), [[np.nan] * 40]):
            with pytest.raises(ValueError, match="40 finite numbers"):
                ask(x)
        assert ask(GOOD)["classes"]


# --- the process ----------------------------------------------------------------------------------


def test_says_where_it_listens_and_nothing_else(file, processes):
    with served(file) as ask:
        [process] = processes
        errors = process.stderr
        lines = []
        reader = threading.Thread(target=lambda: lines.extend(os.read(errors.fileno(), 9_999).split(b"\n")))
        reader.start()
        ask(GOOD)
        with pytest.raises(ValueError):
            ask([[1]])
        connection = socket.create_connection(("127.0.0.1", _port(ask)))
        connection.sendall(b"POST / HTTP/1.0\r\nContent-Length: 1000\r\n\r\n{")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.close()  # with a reset, in the middle of a request
        for method in ("BREW", "HEAD"):
            http.client.HTTPConnection("127.0.0.1", _port(ask), timeout=20).request(method, "/")
        ask()
    reader.join(20)
    assert lines == [b""]


def _port(ask):
    return int(ask.args[0].rsplit(":", 1)[1])


def test_listens_to_this_machine_alone(file):
    with listening(file) as address:
        host, port = address.removeprefix("http://").split(":")
        assert host == "127.0.0.1" and int(port) > 0
        table = Path("/proc/net/tcp")
        if table.exists():
            listeners = [line.split()[1] for line in table.read_text().splitlines() if " 0A " in line]
            assert [one for one in listeners if one.endswith(f":{int(port):04X}")] == [
                f"0100007F:{int(port):04X}"
            ]


def test_two_at_a_time(file):
    with listening(file) as one, listening(file) as other:
        assert one != other


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_the_process_ends_with_the_block(file, processes, error):
    if error:
        with pytest.raises(error), served(file) as ask:
            raise error
    else:
        with served(file) as ask:
            pass
    [process] = processes
    assert process.poll() is not None
    with pytest.raises(OSError), socket.create_connection(("127.0.0.1", _port(ask)), timeout=5):
        pass


def test_ends_quietly_when_it_is_interrupted(file, processes, tmp_path):
    (tmp_path / "model.onnx").write_bytes(file)
    process = subprocess.Popen(
        [*COMMAND, str(tmp_path / "model.onnx"), "--port", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # What a shell runs in the background ignores interrupts, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=20) == ("", "") and process.returncode == 0
    finally:
        process.kill()


def test_refuses_what_is_no_file(tmp_path):
    for path in ("missing.onnx", "."):
        done = subprocess.run([*COMMAND, str(tmp_path / path)], capture_output=True, text=True)
        assert done.returncode == 2 and not done.stdout
        assert f"cannot serve {tmp_path / path}" in done.stderr and "Traceback" not in done.stderr


def identity(kind, shape):
    """Return the bytes of a valid ONNX file that is no classifier of rows of floats."""
    values = [helper.make_tensor_value_info(name, kind, shape) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


NO_CLASSIFIER = {
    "empty": b"",
    "text": b"hello",
    "zip": b"PK\3\4" + bytes(100),
    "one axis": identity(TensorProto.FLOAT, [40]),
    "three axes": identity(TensorProto.FLOAT, ["n", 2, 40]),
    "any width": identity(TensorProto.FLOAT, ["n", "m"]),
    "words": identity(TensorProto.STRING, ["n", 40]),
}


@pytest.mark.parametrize("case", NO_CLASSIFIER)
def test_refuses_what_is_no_classifier(case, tmp_path):
    with (
        pytest.raises(ValueError, match="onnx cannot be served") as caught,
        served(NO_CLASSIFIER[case]),
    ):
        pytest.fail("is served")
    assert "cannot serve" in str(caught.value) and "Traceback" not in str(caught.value)


def test_refuses_half_a_file_and_a_port_in_use(file, tmp_path):
    with pytest.raises(ValueError, match="cannot serve"), served(file[: len(file) // 2]):
        pytest.fail("is served")
    (tmp_path / "model.onnx").write_bytes(file)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for port in (taken.getsockname()[1], 70_000):
            command = [*COMMAND, str(tmp_path / "model.onnx"), "--port", str(port)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert done.returncode == 2 and f"on port {port}" in done.stderr


def test_stands_alone():
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime"}
    names = set()
    for node in ast.walk(ast.parse(Path(serve.__file__).read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            names.add(node.module.split(".")[0])
    assert {"numpy", "onnxruntime", "json"} < names <= allowed
    assert not names & {"importlib", "runpy"}


def test_runs_where_the_book_is_not_installed(file, tmp_path):
    """A copy of the file alone, in a Python that finds no dlopt_helpers, torch or keras."""
    (tmp_path / "model.onnx").write_bytes(file)
    (tmp_path / "serve.py").write_bytes(Path(serve.__file__).read_bytes())
    for name in ("dlopt_helpers", "torch", "keras", "tensorflow"):
        (tmp_path / f"{name}.py").write_text("raise ImportError")
    command = [sys.executable, str(tmp_path / "serve.py"), str(tmp_path / "model.onnx"), "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = process.stdout.readline().strip().removeprefix("http://")
            assert post(address, json.dumps({"x": GOOD}))[0] == 200
        finally:
            process.kill()
