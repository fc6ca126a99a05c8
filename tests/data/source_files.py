"""Small files of every kind that a source reads, made by hand."""

import io
import tarfile

from PIL import Image

JPEG = b"\xff\xd8 not decoded by a source"


def write_tar(path, members):
    """Writes [(name, bytes or text)] to a tar."""
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def numbered(count, start=0):
    """Members of `count` good records whose image and caption tell their number."""
    members = []
    for i in range(start, start + count):
        members += [(f"{i:04d}.jpg", b"image %d" % i), (f"{i:04d}.txt", f"caption {i}")]
    return members


def picture(number=0, kind="JPEG", size=(8, 8), **options):
    """An encoded image of one grey value."""
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256,) * 3).save(file, kind, **options)
    return file.getvalue()
