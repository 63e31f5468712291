"""An unpickler that rebuilds numpy arrays and plain containers, and runs nothing that a file names.

Refusing unknown globals is not enough: numpy's own `dtype.__setstate__` and `ndarray.__setstate__` believe the flags they
are given, and an object dtype with its flags cleared turns bytes of the file into pointers. So the pickle's numpy globals
are answered by stand-ins, which keep what they were given, check it, and make the array themselves.
"""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.lib import format as npy

from equipoise.models.errors import EquipoiseError


def read_object_array(path: Path) -> object:
    """The object of a pickled `.npy` file. Raises `EquipoiseError` for a refused global, `ValueError` and others for a
    file that is no such thing.
    """
    with path.open("rb") as file:
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        _, _, dtype = header(file)
        if not dtype.hasobject:
            raise ValueError(f"it holds plain numbers of dtype {dtype}, not objects")
        found = _plain(_ArrayUnpickler(file, path).load(), {})
    return found.item() if isinstance(found, np.ndarray) and found.ndim == 0 else found


class _Dtype:
    def __init__(self, spec: str, *_: object) -> None:
        # No structured or void types: their fields could hide objects among raw bytes.
        if not re.fullmatch(r"[biufcSU]\d+|O8?", str(spec)):
            raise ValueError(f"dtype {spec!r} is not a plain one")
        self.value = np.dtype(spec)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">", "=", "|"):
            self.value = self.value.newbyteorder(state[1])


class _Array:
    value: np.ndarray

    def __init__(self, *_: object) -> None:
        self.value = np.empty(0)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(data, dtype, shape, "F" if fortran else "C")


def _array(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str = "C") -> np.ndarray:
    if dtype.value.hasobject:
        flat = np.empty(len(data), object)
        for i, item in enumerate(data):
            flat[i] = item
    else:
        flat = np.frombuffer(data, dtype.value).astype(dtype.value.newbyteorder("="))
    return flat.reshape(shape, order=cast(Any, order))


def _frombuffer(data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    out = _Array()
    out.value = _array(data, dtype, shape, order)
    return out


def _scalar(dtype: _Dtype, data: Any = b"") -> object:
    return _array(data, dtype, ())[()]


def _latin1(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError(f"bytes in the encoding {encoding!r}")
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): "ndarray",  # only ever named, never called
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
    **{(f"{builtins}", name): kind for builtins in ("builtins", "__builtin__")
       for name, kind in (("set", set), ("frozenset", frozenset))},
    **{(f"numpy.{core}.{module}", name): stand_in for core in ("core", "_core")
       for module, name, stand_in in (
           ("multiarray", "_reconstruct", _Array),
           ("multiarray", "scalar", _scalar),
           ("numeric", "_frombuffer", _frombuffer),
       )},
}  # fmt: skip


class _ArrayUnpickler(pickle.Unpickler):
    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self.path = path

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        raise EquipoiseError(
            f"{self.path} asks for {module}.{name} when it is loaded, which could run code: it was refused, and nothing "
            "was run. Only numpy arrays, containers, numbers and strings are read; save the data as those."
        )


def _plain(value: Any, seen: dict[int, Any]) -> Any:
    """`value` with every stand-in replaced by what it stands for; what is shared is rebuilt once."""
    if id(value) in seen:
        return seen[id(value)]
    rebuild: dict[type, Callable[[Any], Any]] = {
        dict: lambda v: {key: _plain(item, seen) for key, item in v.items()},
        list: lambda v: [_plain(item, seen) for item in v],
        tuple: lambda v: tuple(_plain(item, seen) for item in v),
        _Dtype: lambda v: v.value,
        _Array: lambda v: _plain(v.value, seen),
        np.ndarray: lambda v: _objects(v, seen) if v.dtype.hasobject else v,
    }
    seen[id(value)] = out = rebuild.get(type(value), lambda v: v)(value)
    return out


def _objects(array: np.ndarray, seen: dict[int, Any]) -> np.ndarray:
    out = np.empty(array.shape, object)
    for place in np.ndindex(array.shape):
        out[place] = _plain(array[place], seen)
    return out
