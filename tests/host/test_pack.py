"""Host packing against golden's quantiser and the scheduler's layout of constants."""

import re
from dataclasses import asdict

import numpy as np
import pytest

from hwgen.config import Config
from hwgen.host.pack import pack_input, pack_rows, pack_run, unfit, unpack_output, unpack_rows, unpack_run
from hwgen.intgraph import Buffer, Input, View
from hwgen.patches import grid, patchify
from hwgen.program import InputSlot, OutputSlot, RowLayout
from hwgen.schedule.layout import layout_of
from hwgen.schedule.layout import pack_rows as pack_constant
from hwgen.schedule.prepare import row_layout
from hwgen.sim import golden

CONFIGS = [Config(), Config(array_outputs=12, array_inputs=20), Config(array_outputs=8, array_inputs=8, axi_bytes=64)]


def layout_dict(config, rows, cols, groups=1, narrow=False):
    buffer = Buffer("b", rows, cols, groups)
    view = View("b", 0, rows, 0, cols)
    layout = layout_of(buffer, config)
    return asdict(row_layout(layout, view, rows, config, narrow)), layout.columns(view)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("cols, groups", [(1, 1), (16, 1), (37, 1), (30, 3), (32, 2)])
def test_rows_lie_like_constants(config, cols, groups, narrow):
    layout, columns = layout_dict(config, 7, cols, groups, narrow)
    rows = np.random.default_rng(0).integers(-32768, 32768, (7, cols)).astype(np.int16)
    if narrow:
        rows = rows // 256 * 256
    data = pack_rows(layout, rows)
    assert data == pack_constant(rows, columns, config, narrow)
    assert len(data) == RowLayout(**layout).bytes
    np.testing.assert_array_equal(unpack_rows(layout, data), rows)


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("config", CONFIGS)
def test_input_equals_golden(config, narrow):
    shape, patch = (3, 8, 12), (3, 2, 4)
    rng = np.random.default_rng(1)
    image = (rng.normal(size=shape) * 3).astype(np.float32)
    step, offset = 0.0625, 0.25
    image[0, 0, :6] = offset + step * np.array([0.5, 1.5, -0.5, -2.5, 300, -300])  # ties and saturation
    layout, _ = layout_dict(config, 12, 24, narrow=narrow)
    entry = asdict(InputSlot("image", shape, patch, step, offset, 0, RowLayout(**layout)))
    got = unpack_rows(layout, pack_input(entry, image))
    op = Input("in", View("b", 0, 12, 0, 24), "image", shape, patch, step, offset)
    np.testing.assert_array_equal(got, golden.quantise_image(op, image))
    first = got[:, :8].reshape(-1)[:6] // 256
    np.testing.assert_array_equal(first[:4], [0, 2, 0, -2])  # half to even
    steps = np.clip(np.round((image.astype(np.float64) - offset) / step), -127, 127)
    np.testing.assert_array_equal(got, patchify(steps, patch) * 256)


IMAGE, VIDEO = ((3, 8, 12), (3, 4, 3)), ((6, 2, 8, 9), (2, 2, 3, 3))
CUTS = [
    (*IMAGE, (3, 1, 3), ()),
    (*IMAGE, (3, 2, 2), (0, 1, 0, 0, 2, 3)),
    (*IMAGE, None, (0, 1, 2, 0, 1, 2)),
    ((8, 12, 3), (4, 3, 3), (2, 2, 3), (1, 0, 0, 2, 3, 0)),  # channels last
    (*VIDEO, None, ()),
    (*VIDEO, (1, 2, 2, 3), (1, 0, 1, 0, 1, 0, -1, 0)),
    ((16,), (4,), (2,), (1, 1)),
]


@pytest.mark.parametrize("shape, patch, stride, pads", CUTS)
def test_cut_input_equals_golden(shape, patch, stride, pads):
    image = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    op = Input("in", View("b", 0, 1, 0, 36), "image", shape, patch, 0.02, 0.25, stride=stride, pads=pads)
    layout, _ = layout_dict(CONFIGS[0], op.patches, int(np.prod(patch)))
    entry = asdict(InputSlot("image", shape, patch, 0.02, 0.25, 0, RowLayout(**layout), stride=stride, pads=pads))
    got = unpack_rows(layout, pack_input(entry, image))
    np.testing.assert_array_equal(got, golden.quantise_image(op, image))
    assert len(got) == op.patches
    rank = len(shape)
    image = np.pad(image, [(max(0, n), max(0, m)) for n, m in zip(pads[:rank], pads[rank:], strict=True)] or [(0, 0)] * rank)
    where = np.unravel_index(len(got) // 2, grid(shape, patch, stride, pads))
    corner = [i * s for i, s in zip(where, stride or patch, strict=True)]
    one = image[tuple(slice(c, c + n) for c, n in zip(corner, patch, strict=True))].astype(np.float64).reshape(-1)
    np.testing.assert_array_equal(got[len(got) // 2], 256 * np.clip(np.round((one - 0.25) / 0.02), -127, 127))


def test_a_fine_image_has_all_bits():
    image = np.random.default_rng(1).normal(size=(3, 8, 12)).astype(np.float32) * 2
    layout, _ = layout_dict(CONFIGS[0], 12, 24)
    entry = asdict(InputSlot("image", image.shape, (3, 2, 4), 0.02, 0.25, 0, RowLayout(**layout), fine=True))
    op = Input("in", View("b", 0, 12, 0, 24), "image", image.shape, (3, 2, 4), 0.02, 0.25, fine=True)
    got = unpack_rows(layout, pack_input(entry, image))
    np.testing.assert_array_equal(got, golden.quantise_image(op, image))
    steps = np.round((image.astype(np.float64) - 0.25) / 0.02 * 256)
    np.testing.assert_array_equal(got, patchify(np.clip(steps, -127 * 256, 127 * 256), (3, 2, 4)))


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("uint8", [0, 255.0, 7], [(0.5, "0.5 in"), (-1, "-1 in"), (256, "256 in .* uint8, whole numbers from 0 to 255")]),
        ("int8", [-128, 127], [(128, "128 in"), (-0.25, "-0.25 in"), (-129, "whole numbers from -128 to 127")]),
        ("bool", [0, 1], [(2, "2 in"), (0.1, "takes bool")]),
        ("int32", [2**31 - 128], [(1.5, "1.5 in"), (2.0**31, "2.14748e.09 in")]),
        ("float32", [1e38, -0.5], [(np.nan, "NaN or infinity"), (1e39, "a value beyond float32"), (-np.inf, "NaN or infinity")]),
    ],
)
def test_what_a_type_of_input_cannot_hold(kind, good, bad):
    zero = np.zeros((2, 1, len(good)))
    assert unfit(zero + np.array(good), kind) is None
    for value, said in bad:
        images = zero.copy()
        images[1, 0, 0] = value
        fault = unfit(images, kind)
        assert fault is not None and re.search(said, fault) and "in image 1" in fault
    assert unfit(np.full((1, 2), 200, np.uint8), "int8") is not None and unfit(np.ones((1, 2), bool), "uint8") is None


def test_narrow_rows_are_bytes():
    layout, _ = layout_dict(CONFIGS[1], 1, 6, narrow=True)  # chunks of 4 in beats of 16 bytes
    assert (layout["element_bytes"], layout["chunk_bytes"]) == (1, 16)
    data = pack_rows(layout, np.array([[1, -127, 127, 0, -1, 2]], np.int16) * 256)
    assert data == bytes([1, 129, 127, 0, *[0] * 12, 255, 2, *[0] * 14])
    with pytest.raises(ValueError, match="multiples of 256"):
        pack_rows(layout, np.full((1, 6), 257, np.int16))


def test_bad_images_are_refused():
    layout, _ = layout_dict(CONFIGS[0], 4, 4)
    entry = asdict(InputSlot("image", (1, 4, 4), (1, 2, 2), 1.0, 0.0, 0, RowLayout(**layout)))
    with pytest.raises(ValueError, match=r"input 'image': shape \[1, 4, 5\], expected \[1, 4, 4\]"):
        pack_input(entry, np.zeros((1, 4, 5)))
    with pytest.raises(ValueError, match="'image': holds NaN"):
        pack_input(entry, np.full((1, 4, 4), np.nan))
    with pytest.raises(ValueError, match="'image': holds 0.5 in image 0, the input takes uint8"):
        pack_input(entry | {"type": "uint8"}, np.full((1, 4, 4), 0.5))


def test_output():
    layout, _ = layout_dict(CONFIGS[1], 2, 10)
    rows = np.arange(-10, 10, dtype=np.int16).reshape(2, 10)
    entry = asdict(OutputSlot("y", (5, 4), 0.1, 0, RowLayout(**layout)))
    got = unpack_output(entry, np.frombuffer(pack_rows(layout, rows), np.uint8))
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, (rows * np.float64(0.1)).astype(np.float32).reshape(5, 4))


def test_runs_of_several_images():
    """A slot's index says which image it holds; the last image stands in for missing ones, which are not read back."""
    layout, _ = layout_dict(CONFIGS[0], 4, 4)
    size = RowLayout(**layout).bytes
    make = {"shape": (1, 4, 4), "patch": (1, 2, 2), "step": 1.0, "offset": 0.0, "layout": RowLayout(**layout)}
    order = (2, 0, 1)
    slots = [asdict(InputSlot("image", dram=at * size, index=i, **make)) for at, i in enumerate(order)]
    images = np.arange(32, dtype=np.float32).reshape(2, 1, 4, 4)
    written = dict(pack_run(slots, {"image": images}))
    assert written == {at * size: pack_input(slots[0], images[min(i, 1)]) for at, i in enumerate(order)}
    outputs = [
        asdict(OutputSlot("y", (4, 4), 1 / 256, at * size, RowLayout(**layout), index=i)) | {"bytes": size}
        for at, i in enumerate(order)
    ]
    got = unpack_run(outputs, lambda offset, size: np.frombuffer(written[offset], np.uint8), 2)
    np.testing.assert_array_equal(got["y"], [patchify(image, (1, 2, 2)) for image in images])
