"""Tars of small pictures for the tests of prepared data."""

import io
import json
import tarfile

import numpy as np
from PIL import Image


def picture(seed, size=(40, 30), form="JPEG", mode="RGB", **options):
    """The bytes of an encoded picture of `size` (width, height), smooth so that JPEG keeps it."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, channels), np.uint8)
    bands = [Image.fromarray(band).resize(size, Image.BICUBIC) for band in np.moveaxis(small, 2, 0)]
    file = io.BytesIO()
    Image.merge(mode, bands).save(file, form, **options)
    return file.getvalue()


def write_tar(path, records):
    """Writes [(key, image bytes, json fields)] as a WebDataset tar and gives its path."""
    with tarfile.open(path, "w") as tar:
        for key, image, fields in records:
            for extension, data in (("jpg", image), ("json", json.dumps(fields).encode())):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return str(path)


def records(count, **options):
    """Records that differ in everything; every third has phrases, and one that is empty."""
    found = []
    for i in range(count):
        fields = {"captions": [f"a caption {i}", f"über {i} ☃"][: 1 + i % 2]}
        if i % 3 == 0:
            fields["phrases"] = [[f"a dog {i}", "a hat"], []][: 1 + i % 2]
        found.append((f"key{i:04d}", picture(i, **options), fields))
    return found
