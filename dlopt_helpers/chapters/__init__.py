"""What single chapters show: measurements, explorers and the checks of exercises."""

import os

# TensorFlow writes notes on its build to every learner's page unless it is told not to before its import.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
