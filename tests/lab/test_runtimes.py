import io
import logging
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest

from dlopt_helpers.lab.runtimes import checked_calibration, quiet

EVERYTHING = """
import numpy as np
from dlopt_helpers.lab import litert, onnxrt
from dlopt_helpers.lab.models import cnn
from dlopt_helpers.lab.twins import keras_twin
x = np.random.default_rng(0).normal(size=(20, 40))
onnx, twin = onnxrt.export(cnn()), keras_twin(cnn())
for file in (onnx, onnxrt.quantize_static(onnx, x), onnxrt.quantize_dynamic(onnx)):
    onnxrt.load(file)(x)
for file in (litert.convert(twin), litert.quantize_static(twin, x), litert.quantize_dynamic(twin)):
    litert.load(file)(x)
"""


def test_quiet_drops_what_each_way_to_talk_says(capfd):
    log, notebook = logging.getLogger("talks"), io.StringIO()  # a notebook's stream has no descriptor
    log.addHandler(logging.StreamHandler(notebook))
    with quiet():
        log.warning("g")
        print("a")
        print("b", file=sys.stderr)
        os.write(1, b"c")
        os.write(2, b"d")
        warnings.warn("e", stacklevel=1)
        logging.warning("f")
    assert capfd.readouterr() == ("", "") and notebook.getvalue() == ""


def test_after_quiet_all_is_as_before(capfd):
    handlers = list(logging.root.handlers)
    logging.root.handlers[:] = []
    logging.disable(logging.DEBUG)
    try:
        with pytest.raises(ZeroDivisionError), quiet():
            logging.warning("makes a handler")
            raise ZeroDivisionError
        assert logging.root.handlers == []
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.root.handlers[:] = handlers
        logging.disable(logging.NOTSET)
    print("a")
    os.write(2, b"b")
    with pytest.warns(UserWarning):
        warnings.warn("c", stacklevel=1)
    assert capfd.readouterr() == ("a\n", "b")


def test_a_fresh_process_hears_nothing_from_the_runtimes(tmp_path):
    run = subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True, cwd=tmp_path)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (np.empty((0, 3)), r"shape \(0, 3\)"),
        (np.ones((2, 4)), r"shape \(2, 4\)"),
        (np.arange(3.0), r"shape \(3,\)"),
        (np.array([["a", "b", "c"]]), "<U1"),
        (None, "object"),
        (np.array([[0, 1, np.inf]]), "inf"),
        (np.array([[0, 1, np.nan]]), "nan"),
        (np.array([[0, 1, 1e39]]), "inf"),
        (np.ones((2, 3)), "all the same"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_calibration_from_which_no_range_can_be_read(bad, word):
    with pytest.raises(ValueError, match=f"calibration.*{word}"):
        checked_calibration(bad, 3)
