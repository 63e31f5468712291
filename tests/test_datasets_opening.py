"""Files from strangers: what they plant is never run, and what is wrong with them is said in a sentence."""

import collections
import os
import pathlib
import pickle
import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from equipoise.datasets.opening import load_object_array, open_parquet
from equipoise.models.errors import EquipoiseError


class Touch:
    """Unpickled, creates the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.path),)


class Shell(Touch):
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def planted_parquet(path, trace, nested=False):
    from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

    storage = pa.array([pickle.dumps(Touch(trace))], pa.large_binary())
    column = pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)
    if nested:
        column = pa.StructArray.from_arrays([column], ["inside"])
    pq.write_table(pa.table({"id": [1], "image": column}), path)


def test_a_planted_object_column_runs_under_plain_pyarrow_and_never_through_our_door(tmp_path):
    pytest.importorskip("ray.data")
    trace = tmp_path / "trace"
    planted_parquet(tmp_path / "evil.parquet", trace)
    pq.read_table(tmp_path / "evil.parquet").to_pydict()
    assert trace.exists(), "the plant does nothing, so this test shows nothing"
    trace.unlink()

    for expected in (None, pa.schema([("id", pa.int64()), ("image", pa.large_binary())])):
        with pytest.raises(
            EquipoiseError, match=r"evil.parquet .*'image' \(ray.data.arrow_pickled_object\).*plain col"
        ):
            open_parquet(tmp_path / "evil.parquet", expected)
    assert not trace.exists()


def test_a_nested_extension_is_refused_under_the_name_of_its_column(tmp_path):
    pytest.importorskip("ray.data")
    planted_parquet(tmp_path / "evil.parquet", tmp_path / "trace", nested=True)
    with pytest.raises(EquipoiseError, match=r"'image' \(ray.data.arrow_pickled_object\)"):
        open_parquet(tmp_path / "evil.parquet")


class Spying(pa.ExtensionType):
    seen: list = []  # noqa: RUF012

    def __init__(self):
        super().__init__(pa.int64(), "equipoise.test.spying")

    def __arrow_ext_serialize__(self):
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        cls.seen.append(serialized)
        return cls()


@pytest.fixture
def typed(tmp_path):
    """A Parquet file with a column of a registered extension type, and its footer's place."""
    pa.register_extension_type(Spying())
    path = tmp_path / "typed.parquet"
    pq.write_table(pa.table({"id": [1], "x": pa.ExtensionArray.from_storage(Spying(), pa.array([1]))}), path)
    yield path
    pa.unregister_extension_type("equipoise.test.spying")


def footer_of(data):
    length = struct.unpack("<i", data[-8:-4])[0]
    return len(data) - 8 - length, length


def test_no_extension_type_is_even_built(typed):
    Spying.seen.clear()
    pq.read_metadata(typed)
    assert Spying.seen, "pyarrow no longer builds types in read_metadata: the reading of raw footers can go"
    Spying.seen.clear()
    with pytest.raises(EquipoiseError, match=r"'x' \(equipoise.test.spying\)"):
        open_parquet(typed)
    assert not Spying.seen


def test_a_footer_that_arrow_reads_otherwise_than_its_headers_say(typed):
    data = bytearray(typed.read_bytes())
    start, _ = footer_of(data)
    assert data[start + 3] == 0x3C  # the schema: a list of 3 structs
    data[start + 3] = 0x34  # a list of 3 integers, which Arrow's Thrift reads as structs all the same
    typed.write_bytes(data)
    Spying.seen.clear()
    pq.read_metadata(typed)
    assert Spying.seen
    Spying.seen.clear()
    with pytest.raises(EquipoiseError, match=r"'x' \(equipoise.test.spying\)"):
        open_parquet(typed)
    assert not Spying.seen


def test_types_that_arrow_itself_brings_are_refused_too(tmp_path):
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 3), np.float32))
    pq.write_table(pa.table({"x": tensors}), tmp_path / "t.parquet")
    with pytest.raises(EquipoiseError, match=r"'x' \(arrow.fixed_shape_tensor\)"):
        open_parquet(tmp_path / "t.parquet")


PLAIN = pa.table({"id": pa.array([1, 2]), "name": pa.array(["a", "b"])})


def test_a_plain_file_opens_also_one_that_pandas_wrote_or_without_an_arrow_schema(tmp_path):
    PLAIN.to_pandas().to_parquet(tmp_path / "pandas.parquet")
    pq.write_table(PLAIN, tmp_path / "bare.parquet", store_schema=False)
    many = pa.table({f"column {i}": [1.5, None] for i in range(40)})  # lists long enough for Thrift's second form
    pq.write_table(many, tmp_path / "many.parquet", row_group_size=1)
    assert open_parquet(tmp_path / "pandas.parquet").metadata.num_rows == 2
    assert open_parquet(tmp_path / "bare.parquet").read().equals(PLAIN)
    assert open_parquet(tmp_path / "many.parquet").read().equals(many)


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        ({"id": pa.int32(), "name": pa.string()}, r"t.parquet: column 'id' must be int32, found int64"),
        ({"id": pa.int64()}, r"does not belong there, 'name' of type string: expected id and no others"),
        (
            {"id": pa.int64(), "name": pa.string(), "age": pa.int8()},
            r"lacks the column 'age' of type int8: it holds id, na",
        ),
    ],
)
def test_another_schema_than_the_expected_one_is_named(tmp_path, expected, sentence):
    pq.write_table(PLAIN, tmp_path / "t.parquet")
    with pytest.raises(EquipoiseError, match=sentence):
        open_parquet(tmp_path / "t.parquet", pa.schema(expected.items()))


def test_the_order_of_columns_does_not_matter(tmp_path):
    pq.write_table(PLAIN, tmp_path / "t.parquet")
    assert open_parquet(tmp_path / "t.parquet", pa.schema([("name", pa.string()), ("id", pa.int64())]))


def test_files_that_are_no_parquet_are_named(tmp_path):
    path = tmp_path / "t.parquet"
    with pytest.raises(EquipoiseError, match=r"No Parquet file at .*t.parquet"):
        open_parquet(path)
    for content in (b"", b"PAR1", b"a,b\n1,2\n3,4\n5,6\n"):
        path.write_bytes(content)
        with pytest.raises(EquipoiseError, match=r"t.parquet is not a Parquet file, or it was cut short"):
            open_parquet(path)
    pq.write_table(PLAIN, path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(EquipoiseError, match=r"cut short"):
        open_parquet(path)
    path.write_bytes(whole[:-4] + b"PARE")
    with pytest.raises(EquipoiseError, match=r"encrypted footer"):
        open_parquet(path)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4), plain=st.booleans())
def test_a_damaged_footer_opens_or_is_refused_in_a_sentence(typed, flips, plain):
    path = typed.parent / "t.parquet"
    if plain:
        pq.write_table(PLAIN, path)
    data = bytearray((path if plain else typed).read_bytes())
    start, length = footer_of(data)
    for where, byte in flips:
        data[start + int(where * (length - 1))] = byte
    path.write_bytes(data)
    Spying.seen.clear()
    sentence = "t.parquet"
    try:
        open_parquet(path, PLAIN.schema)
    except EquipoiseError as error:
        sentence = str(error)
    assert "t.parquet" in sentence
    assert not Spying.seen


def object_file(path, value, protocol=4):
    """A .npy file as numpy writes objects, with any pickle protocol."""
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(value, file, protocol)
    return path


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_object_arrays_come_back_as_numpy_reads_them(tmp_path, protocol):
    shared = np.arange(6.0).reshape(2, 3)
    content = {
        "arrays": [
            shared,
            shared,
            np.asfortranarray(shared),
            shared.astype(">f4"),
            np.array(["a", "bc"]),
            np.array([True]),
        ],
        "ragged": np.array([shared, {"x": (1, 2.5, None, b"raw", "text")}, {3, 4}], dtype=object),
        "scalar": np.float32(2.5),
    }
    path = object_file(tmp_path / "a.npy", np.array(content, dtype=object), protocol)
    trusted = np.load(path, allow_pickle=True).item()
    found = load_object_array(path)
    assert isinstance(found, dict)
    assert found["scalar"] == trusted["scalar"]
    for ours, theirs in zip(found["arrays"], trusted["arrays"], strict=True):
        assert type(ours) is np.ndarray
        assert ours.dtype == theirs.dtype.newbyteorder("=")  # numpy itself swaps in some protocols only
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(found["ragged"][0], shared)
    assert list(found["ragged"][1:]) == list(trusted["ragged"][1:])


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize(("plant", "name"), [(Touch, r"(pathlib|__builtin__.getattr)"), (Shell, "posix.system")])
def test_a_planted_pickle_is_refused_and_not_run(tmp_path, plant, name, protocol):
    trace = tmp_path / "trace"
    value = {"X": [np.zeros(3)], "y": plant(trace)}
    path = object_file(tmp_path / "evil.npy", np.array(value, dtype=object), protocol)
    with pytest.raises(EquipoiseError, match=rf"evil.npy asks for {name}.*refused, and nothing was run"):
        load_object_array(path)
    assert not trace.exists()


def test_other_classes_and_builtins_are_refused(tmp_path):
    for value, name in ((collections.OrderedDict(a=1), "collections.OrderedDict"), (eval, "builtins.eval")):
        with pytest.raises(EquipoiseError, match=name):
            load_object_array(object_file(tmp_path / "evil.npy", value))


class Forged:
    """An array whose dtype hides objects, so that numpy would take bytes of the file for pointers."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __reduce__(self):
        return np._core.multiarray._reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), self.dtype, False, b"\x01" * 8)


class ForgedDtype:
    def __init__(self, *state):
        self.state = state

    def __reduce__(self):
        return np.dtype, (self.state[0], False, True), (3, "|", None, *self.state[1:], 0)


@pytest.mark.parametrize(
    "dtype",
    [
        ForgedDtype("O8", None, None, -1, -1),  # an object dtype with its flags cleared
        ForgedDtype("V8", ("a",), {"a": (np.dtype("O"), 0)}, 8, 1),  # a field of objects in raw bytes
    ],
)
def test_forged_dtypes_never_reach_numpy(tmp_path, dtype):
    with pytest.raises(EquipoiseError, match=r"forged.npy cannot be read as a numpy object array"):
        load_object_array(object_file(tmp_path / "forged.npy", Forged(dtype)))


def test_files_that_are_no_object_array_are_named(tmp_path):
    path = tmp_path / "x.npy"
    with pytest.raises(EquipoiseError, match=r"No file at .*x.npy"):
        load_object_array(path)
    np.save(path, np.zeros(3))
    with pytest.raises(EquipoiseError, match=r"x.npy .*plain numbers of dtype float64, not objects"):
        load_object_array(path)
    path.write_bytes(b"not numpy at all")
    with pytest.raises(EquipoiseError, match=r"x.npy cannot be read as a numpy object array"):
        load_object_array(path)
    circle: list = []
    circle.append(circle)
    with pytest.raises(EquipoiseError, match=r"x.npy cannot be read"):
        load_object_array(object_file(path, circle))
