"""The driver, the same tests on every device: answers, tasks, streams, submit and wait, the end."""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pytest

from hwgen.host.accelerator import Accelerator
from hwgen.host.errors import Cancelled, DeviceError, InputError, WrongHardware
from hwgen.host.memory import SLOTS


@pytest.fixture
def accelerator(bench):
    with Accelerator(bench.bundle, bench.device, say=None) as opened:
        yield opened


def same(found: dict, expected: dict, images: slice = slice(None)) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values[images])


def test_answers_are_golden(bench, accelerator):
    assert accelerator.tasks == ["digit", "parity"] and accelerator.task == "digit"
    same(accelerator({"image": bench.images}), bench.golden["digit"])
    accelerator.task = "parity"
    same(accelerator({"image": bench.images[:1], "label": None}), bench.golden["parity"], slice(1))
    bare = accelerator(bench.images[1:2], task="digit")
    np.testing.assert_array_equal(bare, bench.golden["digit"]["digit"][1:2])
    assert bare.dtype == np.float32


def test_verify(bench, accelerator):
    if bench.name == "rtl":
        pytest.skip("reading all of a simulator's memory takes seconds")
    assert accelerator.verify() == []
    accelerator.submit(bench.images[:1])
    with pytest.raises(DeviceError, match="no run is under way"):
        accelerator.verify()


def test_interrupt(bench):
    with Accelerator(bench.bundle, bench.device, wait="interrupt", say=None) as accelerator:
        for job in accelerator.stream(bench.images[:2]):
            assert job.counters["cycles"] > 0 and job.seconds > 0
        same(job.outputs, bench.golden["digit"], slice(1, 2))
        assert accelerator.registers()["STATUS"] & 0b100 == 0  # no interrupt is left pending


def test_stream_of_alternating_tasks(bench, accelerator):
    jobs = list(accelerator.stream(bench.images, cycle(["digit", "parity"])))
    assert [job.task for job in jobs] == ["digit", "parity"] * (len(jobs) // 2)
    for i, job in enumerate(jobs):
        same(job.outputs, bench.golden[job.task], slice(i, i + 1))
        assert job.counters["dram_bytes"] >= bench.bundle.config["axi_bytes"] * job.counters["weight_beats0"] > 0
    with pytest.raises(InputError, match="2 images have a task, there are 4"):
        list(accelerator.stream(bench.images, ["digit", "parity"]))


def test_submit_and_wait(bench, accelerator):
    first, second = (accelerator.submit(bench.images[i : i + 1]) for i in range(SLOTS))
    with pytest.raises(DeviceError, match="2 runs are outstanding"):
        accelerator.submit(bench.images[:1])
    same(second.wait().outputs, bench.golden["digit"], slice(1, 2))  # also finishes the one before
    assert first.done() and second.done()
    same(first.outputs, bench.golden["digit"], slice(0, 1))
    third = accelerator.submit(bench.images[2:3], task="parity")
    assert not third.done()
    while not third.done():
        bench.device.sleep(1e-5)
    same(third.wait().outputs, bench.golden["parity"], slice(2, 3))
    with pytest.raises(InputError, match="4 images in one run; the bundle's program takes 1"):
        accelerator.submit(bench.images)


def test_an_abandoned_stream_frees_its_slots(bench, accelerator):
    for _ in accelerator.stream(bench.images):
        break
    assert [accelerator.submit(bench.images[:1]).wait().count for _ in range(SLOTS + 1)] == [1] * (SLOTS + 1)


def test_bad_inputs(bench, accelerator):
    image = bench.images[:1]
    nan = image.copy()
    nan[0, 0, 3, 3] = np.nan
    for bad, said in (
        (image[0], r"'image': shape \[1, 8, 8\], expected \[images, 1, 8, 8\]"),
        (image[:, :, :7], r"shape \[1, 1, 7, 8\]"),
        (image[:0], "holds no image"),
        (image.astype(complex), "type complex128"),
        (image.astype(str), "type <U"),
        (image.astype(object), "type object"),
        (np.concatenate([image, nan]), "holds NaN or infinity in image 1"),
        (np.full_like(image, 1e300, np.float64), "a value beyond float32 in image 0"),
        ({"picture": image}, "input 'image' is missing; given: 'picture'"),
    ):
        with pytest.raises(InputError, match=said):
            accelerator(bad)
    for name in ("", "Digit"):
        with pytest.raises(InputError, match=f"unknown task '{name}'; it holds 'digit', 'parity'"):
            accelerator.task = name
    with pytest.raises(InputError, match="wait='sleeping'"):
        Accelerator(bench.bundle, bench.device, wait="sleeping")
    same(accelerator({"image": image.astype(np.float64)}), bench.golden["digit"], slice(1))


def test_end(bench, capsys):
    before = bench.buffers if bench.engine else 0
    with Accelerator(bench.bundle, bench.device) as accelerator:
        assert f"runs at {bench.device.clock_mhz:g} MHz" in capsys.readouterr().out
        running, waiting = (accelerator.submit(bench.images[:1]) for _ in range(2))
    accelerator.close()  # again: nothing
    for job in (running, waiting):
        with pytest.raises(Cancelled, match="the accelerator was closed"):
            job.wait()
    with pytest.raises(DeviceError, match="is closed"):
        accelerator(bench.images)
    if bench.engine:
        assert bench.buffers == before == 0
    with Accelerator(bench.bundle, bench.device, say=None) as accelerator:
        same(accelerator({"image": bench.images[:1]}), bench.golden["digit"], slice(1))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ID", 0, "ID .* no hwgen accelerator answers there"),
        ("CONFIG_HASH", 1, "CONFIG_HASH .* load the bitstream of this bundle"),
        ("ISA", 1, "register ISA"),
        ("VERSION", 0x0002_0000, "register VERSION"),
        ("VERSION", 0x0001_FFFF, "register VERSION"),
    ],
)
def test_wrong_hardware(bench, monkeypatch, name, value, said):
    entry = next(e for e in bench.bundle.manifest["registers"] if e["name"] == name)
    with monkeypatch.context() as patch:
        patch.setitem(entry, "value", value)
        with pytest.raises(WrongHardware, match=said):
            Accelerator(bench.bundle, bench.device, say=None)
    with Accelerator(bench.bundle, bench.device, say=None) as accelerator:
        same(accelerator({"image": bench.images[:1]}), bench.golden["digit"], slice(1))


def test_a_lower_minor_version_will_do(bench, monkeypatch):
    entry = next(e for e in bench.bundle.manifest["registers"] if e["name"] == "VERSION")
    monkeypatch.setitem(entry, "value", 0x0001_0000)
    Accelerator(bench.bundle, bench.device, say=None).close()
