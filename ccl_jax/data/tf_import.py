"""TensorFlow without the lines that it writes at its start, and without the GPUs."""

import os
import re
import sys
import tempfile

# What its C++ code says before any setting of its own is read: about drivers for machines that
# this one is not, and instructions that it was not built for.
_NOISE = re.compile(
    r"WARNING: All log messages before absl|To enable the following instructions"
    r"|[IWE]\d{4} .*\b(port|cudart_stub|cpu_feature_guard|cuda_\w+)\.cc:"
)


def import_tensorflow() -> None:
    """Imports it for data and event files, if nothing has; what it says in earnest is shown."""
    if "tensorflow" in sys.modules:
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    with tempfile.TemporaryFile() as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            import tensorflow as tf

            # It would take the memory of every GPU.
            tf.config.set_visible_devices([], "GPU")
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said.read().decode(errors="replace").splitlines():
                if not _NOISE.match(line):
                    print(line, file=sys.stderr)
