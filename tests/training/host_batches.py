"""One of two processes that share a batch; started by test_host_batches.py.

python host_batches.py PORT PROCESS TAR
"""

import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from ccl_jax.data.pipeline import PipelineOptions, TrainingBatches
from ccl_jax.data.sources import open_source
from ccl_jax.data.text import Tokenizer
from ccl_jax.training.sharding import create_mesh, local_groups, to_devices

OPTIONS = PipelineOptions(
    batch_size=16, image_size=8, text_length=6, phrase_length=4, phrases_per_image=2, phrase_group=2
)


def main(port, process, tar):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, int(process))
    source = open_source("webdataset", path=tar)
    tokenizer = Tokenizer.train(source[0].captions, 100)
    # The devices of the two processes take turns, as on a torus: rows are not contiguous.
    mesh = create_mesh(np.array(jax.devices()).reshape(2, -1).T.ravel().tolist())
    groups = local_groups(mesh, OPTIONS.batch_size, OPTIONS.phrase_group)
    assert len(groups) == OPTIONS.groups // 2, groups
    shared = TrainingBatches(source, tokenizer, OPTIONS, groups=groups)
    alone = TrainingBatches(source, tokenizer, OPTIONS)
    whole = list(alone.batches(0, 3))
    for expected, batch in zip(whole, to_devices(shared.batches(0, 3), mesh), strict=True):
        assert batch.keys() == expected.keys()
        for name, value in batch.items():
            assert value.shape == expected[name].shape, name
            found = multihost_utils.process_allgather(value, tiled=True)
            np.testing.assert_array_equal(found, expected[name], err_msg=name)
    print("the same batches")


if __name__ == "__main__":
    main(*sys.argv[1:])
