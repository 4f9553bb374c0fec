"""What PyTorch, torchao, ONNX Runtime, LiteRT and Keras each make of the start of chapter 4.2.

Run from the repository root: python benchmarks/pipeline_peers.py
With --store the figures become those that chapter 4.2 shows. That needs torchao, which the book itself does
not: .venv/bin/pip install torchao
"""

import datetime
import importlib.metadata
import importlib.util
import os
import sys

# Before TensorFlow is imported: one thread, as everywhere else.
os.environ.update(OMP_NUM_THREADS="1", TF_NUM_INTRAOP_THREADS="1", TF_NUM_INTEROP_THREADS="1")

from dlopt_helpers.chapters.pipeline_peers import STORED, peers, table
from dlopt_helpers.lab.measure import device_name

VERSIONS = ["torch", "torchao", "onnxruntime", "ai-edge-litert", "keras"]


def main():
    store = "--store" in sys.argv
    if not importlib.util.find_spec("torchao"):
        if store:
            sys.exit("--store needs torchao: .venv/bin/pip install torchao")
        print("without torchao; to measure it, too: .venv/bin/pip install torchao")
    made = peers() if store else peers(seeds=[0])
    print(f"speed as a multiple of ONNX Runtime's float file, {device_name('cpu')}")
    print(table(made).to_string())
    if store:
        versions = {name: importlib.metadata.version(name) for name in VERSIONS}
        made = made.assign(date=datetime.date.today().isoformat(), device=device_name("cpu"), **versions)
        made.to_csv(STORED, index=False, float_format="%.6g")


if __name__ == "__main__":
    main()
