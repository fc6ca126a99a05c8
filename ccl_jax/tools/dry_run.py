"""Compiles the training step of a config for a TPU slice, without a TPU.

    python -m ccl_jax.tools.dry_run --config configs/siglip_b16.py --topology v5e:16x16

Prints memory, products and messages of a device, and the time that the chip's rates allow.
Ends with code 1 if the step does not fit. Needs `pip install "ccl_jax[tpu]"`.
"""

import os
import sys

from absl import app, flags
from ml_collections import config_flags

_CONFIG = config_flags.DEFINE_config_file("config", None, "Config file, as of ccl_jax.main.")
_TOPOLOGY = flags.DEFINE_string("topology", None, "TPU slice: v5e:2x4, v5e:16x16, v5p:4x8x8.")
_PARAMETERS = flags.DEFINE_bool("parameters", True, "Print how every parameter is split.")


def _main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags begin with --")
    # Imported late, so that --help answers at once.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from ccl_jax.training import config as configs
    from ccl_jax.training import dry_run

    fits = True
    try:
        for name, config in configs.run_configs(_CONFIG.value).items():
            if name:
                print(f"Run {name}")
            if _PARAMETERS.value:
                print(dry_run.parameter_table(config, _TOPOLOGY.value), end="\n\n")
            found = dry_run.dry_run(config, _TOPOLOGY.value)
            print(dry_run.describe(found, config.data.batch_size))
            fits = fits and found.fits
    except ValueError as error:
        sys.exit(f"ccl_jax: {' '.join(str(error).split())}")
    sys.exit(0 if fits else 1)


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "topology"])
    app.run(_main)
