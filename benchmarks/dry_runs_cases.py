"""What `dry_runs.py` compiles: configs with changes, and slices."""

import importlib.util
import json
import pathlib
from typing import Any, NamedTuple

from ml_collections import ConfigDict

_CONFIGS = pathlib.Path(__file__).parents[1] / "configs"
DEPTHS = (1, 3)
"""Depths of both towers that are compiled for a row; the row's own follows on their line."""


class Case(NamedTuple):
    """A step to compile.

    Attributes:
      name: of a file in configs/, without the ending.
      topology: as `dry_run.slice_devices` takes it.
      changes: dotted field of the config -> value.
      title: for the table.
      depth: layers of each tower; 0 for those that the config has.
    """

    name: str
    topology: str
    changes: dict[str, Any]
    title: str
    depth: int = 0

    @property
    def key(self) -> str:
        """What results are kept by."""
        depth = f" depth {self.depth}" if self.depth else ""
        return f"{self.name} {self.topology} {json.dumps(self.changes, sort_keys=True)}{depth}"

    def config(self) -> ConfigDict:
        """The config with the changes.

        Raises:
          ValueError: if it has no such field.
        """
        spec = importlib.util.spec_from_file_location(self.name, _CONFIGS / f"{self.name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config()
        for field, value in self.changes.items():
            part, _, last = field.rpartition(".")
            target = config
            for name in part.split("."):
                target = target[name]
            if last not in target:
                raise ValueError(f"configs/{self.name}.py has no field {field}")
            target[last] = value
        if self.depth:
            with config.unlocked():
                config.model.image.depth = config.model.text.depth = self.depth
        return config


def recipes() -> list[Case]:
    """The published recipes on 256 chips each of three kinds.

    A batch of 768 does not divide over 256 devices in groups of 8 images: 2,048 does.
    """
    cases = []
    for topology in ("v5e:16x16", "v5p:4x8x8", "v6e:16x16"):
        for name, changes, title in (
            ("ccl_siglip_b16_cc3m", {"data.batch_size": 2048}, "CCL, SigLIP B/16"),
            ("siglip_b16", {}, "SigLIP B/16"),
            ("ccl_siglip2_b16", {"data.batch_size": 2048}, "CCL, SigLIP 2 B/16"),
            ("ccl_clip_b32", {"data.batch_size": 2048}, "CCL, CLIP B/32"),
            ("pacl_clip_b16", {}, "PACL, CLIP B/16"),
        ):
            cases.append(Case(name, topology, changes, title))
    return cases


def _scaled(preset: str, topology: str, images: int, layout: str, **changes: Any) -> Case:
    """CCL with 4 phrases an image; `layout` is as in "fsdp64 tensor4 dots micro4096"."""
    fields: dict[str, Any] = {
        "model.preset": preset,
        "data.batch_size": images,
        "data.phrases_per_image": 4.0,
    }
    for word in layout.split():
        kind = word.rstrip("0123456789")
        if kind in ("none", "dots", "full"):
            fields["model.remat"] = kind
        elif kind == "scan":
            fields["model.scan_layers"] = True
        elif kind in ("fsdp", "tensor"):
            fields[f"mesh.{kind}"] = int(word.removeprefix(kind))
        elif kind == "micro":
            fields["train.micro_batch"] = int(word.removeprefix(kind))
    title = f"{preset} {layout}"
    return Case("ccl_siglip_b16_cc3m", topology, fields | changes, title)


def scaling() -> list[Case]:
    """Sizes, batches and layouts of CCL, 4 phrases an image; FSDP over a side of the torus."""
    pod = "v5e:16x16"
    return [
        _scaled("B/16", pod, 32768, "fsdp16 dots"),
        _scaled("B/16", pod, 32768, "replicated dots"),
        _scaled("B/16", pod, 32768, "fsdp256 dots"),
        _scaled("L/16", pod, 32768, "fsdp16 full"),
        _scaled("So400m/14", pod, 32768, "fsdp16 full"),
        _scaled("B/16", pod, 8192, "fsdp16 none"),
        _scaled("B/16", pod, 32768, "fsdp16 dots micro8192"),
        _scaled("So400m/14", pod, 32768, "fsdp16 tensor4 full"),
        _scaled("L/16", pod, 16384, "fsdp16 dots"),
        _scaled("B/16", "v5e:2x4", 1024, "fsdp8 dots"),
        _scaled("B/16", "v5p:8x8x8", 65536, "fsdp64 none"),
    ]


def checks() -> list[Case]:
    """Every layer compiled, one after the other or as a loop (scan), to compare with the line."""
    pod = "v5e:16x16"
    return [
        recipes()[0],
        _scaled("B/16", pod, 32768, "fsdp16 dots scan"),
        _scaled("L/16", pod, 32768, "fsdp16 full scan"),
        _scaled("So400m/14", pod, 32768, "fsdp16 full scan"),
        _scaled("B/16", "v5e:2x4", 1024, "fsdp8 dots scan"),
        _scaled("B/16", "v5e:8x8", 8192, "fsdp8 dots scan"),
        _scaled("B/16", "v5p:8x8x8", 65536, "fsdp64 none scan"),
    ]


TABLES = {"recipes": recipes, "scaling": scaling, "checks": checks}
