"""tf.train.Example, the message inside TFRecords, without TensorFlow.

The messages are declared here field by field, as tensorflow/core/example/*.proto numbers
them, so that the processes that write or read records need not import TensorFlow.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

Values = Sequence[bytes] | Sequence[int] | Sequence[float]

_PACKAGE = "ccl_jax_example"
_FIELD = descriptor_pb2.FieldDescriptorProto
# The lists of a Feature, in the order of their field numbers 1, 2 and 3.
_LISTS = {"BytesList": _FIELD.TYPE_BYTES, "FloatList": _FIELD.TYPE_FLOAT}
_LISTS["Int64List"] = _FIELD.TYPE_INT64
_KINDS = ("bytes_list", "float_list", "int64_list")


def encode(features: Mapping[str, Sequence[bytes] | np.ndarray]) -> bytes:
    """Serialises an example; equal features give equal bytes.

    Args:
      features: by name, a list of bytes, or an int or float array (n,), stored as int64 or
        float32.
    """
    example = _example_class()()
    for name, values in features.items():
        kind = "bytes_list"
        if isinstance(values, np.ndarray):
            kind = "int64_list" if values.dtype.kind in "iu" else "float_list"
            values = values.tolist()
        stored = getattr(example.features.feature[name], kind)
        stored.SetInParent()  # an empty list has a kind too: TensorFlow checks it
        stored.value.extend(values)
    return example.SerializeToString(deterministic=True)


def decode(data: bytes) -> dict[str, Values]:
    """Parses an example to its features by name; one without values is an empty list.

    Raises:
      ValueError: if `data` is not an example.
    """
    example = _example_class()()
    try:
        example.ParseFromString(data)
    except message.DecodeError as error:
        raise ValueError("not a tf.train.Example") from error
    found = {}
    for name, feature in example.features.feature.items():
        kind = feature.WhichOneof("kind")
        found[name] = list(getattr(feature, kind).value) if kind else []
    return found


@functools.cache
def _example_class():
    # A pool of its own: TensorFlow and TFDS register the same messages in the default one.
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Example"))


def _file():
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, kind in _LISTS.items():
        _add(file.message_type, name, [("value", kind, _FIELD.LABEL_REPEATED)])
    fields = [
        (kind, name, _FIELD.LABEL_OPTIONAL) for kind, name in zip(_KINDS, _LISTS, strict=True)
    ]
    feature = _add(file.message_type, "Feature", fields)
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    entries = [("feature", "Features.FeatureEntry", _FIELD.LABEL_REPEATED)]
    features = _add(file.message_type, "Features", entries)
    pair = [("key", _FIELD.TYPE_STRING, _FIELD.LABEL_OPTIONAL)]
    pair += [("value", "Feature", _FIELD.LABEL_OPTIONAL)]
    _add(features.nested_type, "FeatureEntry", pair).options.map_entry = True
    _add(file.message_type, "Example", [("features", "Features", _FIELD.LABEL_OPTIONAL)])
    return file


def _add(messages, name: str, fields: Iterable[tuple]):
    """Adds a message; a field is (name, a type's number or a message's name, label)."""
    added = messages.add(name=name)
    for number, (field, kind, label) in enumerate(fields, 1):
        if isinstance(kind, str):
            kind = {"type": _FIELD.TYPE_MESSAGE, "type_name": f".{_PACKAGE}.{kind}"}
        else:
            kind = {"type": kind}
        added.field.add(name=field, number=number, label=label, **kind)
    return added
