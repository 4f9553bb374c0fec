"""A classifier in service: this file, a model's, NumPy and ONNX Runtime are all that it takes.

python -m dlopt_helpers.chapters.serve model.onnx --port 8080
curl http://127.0.0.1:8080 --data '{"x": [[0.1, 0.2, ...]]}'
"""

import argparse
import contextlib
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnxruntime

MOST = 1_024  # examples in a request


class Classifier:
    """An ONNX file that maps examples, float32 (n, inputs), to logits, (n, classes)."""

    def __init__(self, onnx):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        # x86 processors without VNNI would else add products of 8-bit integers in 16 bits, and overflow.
        options.add_session_config_entry("session.x64quantprecision", "1")
        self.session = onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        (source,) = self.session.get_inputs()
        self.name, (_, inputs) = source.name, source.shape
        [classes] = self.answer(np.zeros((1, inputs)))["probabilities"]
        self.about = {"inputs": inputs, "classes": len(classes), "bytes": len(onnx)}
        self.longest = 32 * MOST * inputs  # bytes of a request: 32 characters for each number
        self.allowed = (
            f'POST / takes {{"x": [[...], ...]}} as JSON: 1 to {MOST} examples of {inputs} finite numbers '
            f"each, in at most {self.longest} bytes"
        )

    def examples(self, body):
        """Return what a request holds as an array; raise ValueError if that is not allowed."""
        try:
            x = np.array(json.loads(body, parse_int=float)["x"], object)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise ValueError('no JSON, or no table of numbers named "x"') from None
        if x.ndim != 2 or x.shape[1] != self.about["inputs"] or not 1 <= len(x) <= MOST:
            raise ValueError(f'"x" has the shape {x.shape}')
        if {type(number) for number in x.flat} != {float}:
            raise ValueError('"x" holds something that is no number')
        if not (abs(x.astype(float)) <= np.finfo("float32").max).all():
            raise ValueError('"x" holds a number that is not finite or too large for 32 bits')
        return x

    def answer(self, x):
        logits = self.session.run(None, {self.name: x.astype("float32")})[0]
        if not np.isfinite(logits).all():
            raise ValueError('"x" holds numbers so large that the network overflows')
        # The largest becomes exp(0), so nothing overflows.
        p = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        return {"probabilities": p.tolist(), "classes": p.argmax(axis=1).tolist()}


class Handler(BaseHTTPRequestHandler):
    timeout = 30  # seconds without a byte from the other side

    def do_GET(self):
        self.reply(200, self.server.classifier.about)

    def do_POST(self):
        classifier, length = self.server.classifier, self.headers.get("Content-Length", "")
        try:
            if not length.isdecimal() or int(length) > classifier.longest:
                raise ValueError(f"Content-Length is {length or 'missing'}")
            self.reply(200, classifier.answer(classifier.examples(self.rfile.read(int(length)))))
        except ValueError as error:
            self.reply(400, {"error": f"{error}. {classifier.allowed}."})
            while self.rfile.read(1 << 16):  # who is still sending would not see the answer otherwise
                pass

    def reply(self, status, content):
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def handle(self):
        with contextlib.suppress(ConnectionError):  # the other side has hung up
            super().handle()

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", type=Path, help="an ONNX file")
    parser.add_argument("--port", type=int, default=8080, help="0 for any that is free")
    options = parser.parse_args()
    try:
        classifier = Classifier(options.model.read_bytes())
        server = ThreadingHTTPServer(("127.0.0.1", options.port), Handler)
    except Exception as error:
        parser.error(f"cannot serve {options.model} on port {options.port}: {error}")
    server.classifier = classifier
    with contextlib.suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()
