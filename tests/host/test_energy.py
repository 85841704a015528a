"""The energy recorder on a device whose power is known."""

from __future__ import annotations

import xml.etree.ElementTree as xml

import pytest

from hwgen.host.energy import MEASURED, SIMULATED, Recorder
from hwgen.host.errors import DeviceError


class Plant:
    """A device with a rail that draws 10 W, 4 W more while `busy`."""

    name, simulated = "plant", False
    sample_seconds, idle_seconds = 0.01, 0.1

    def __init__(self):
        self.time, self.busy, self.call = 0.0, False, None

    def now(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds
        if self.call:
            self.call()

    def every(self, _seconds, call):
        self.call = call
        return lambda: setattr(self, "call", None)

    def rails(self):
        return {"12V": lambda: 14.0 if self.busy else 10.0, "INT": lambda: 2.0}


def test_idle_is_subtracted():
    plant = Plant()
    recorder = Recorder(plant)

    def work():
        plant.busy = True
        for _ in range(50):
            plant.sleep(0.01)
        return "done"

    assert recorder.record(work) == "done" and plant.call is None
    found = recorder.summary(images=100)
    assert found["sensors"] == MEASURED and found["seconds"] == pytest.approx(0.5)
    board, fabric = found["rails"]["12V"], found["rails"]["INT"]
    assert board["idle_w"] == 10 and board["mean_w"] == pytest.approx(14)
    assert board["joule_per_image"] == pytest.approx(14 * 0.5 / 100)
    assert board["joule_per_image_without_idle"] == pytest.approx(4 * 0.5 / 100)
    assert board["images_per_second_per_watt"] == pytest.approx(100 / 0.5 / 14)
    assert board["images_per_second_per_watt_without_idle"] == pytest.approx(100 / 0.5 / 4)
    assert fabric["images_per_second_per_watt_without_idle"] is None
    assert recorder.text(100).startswith("rail 12V (measured): 14.00 W, idle 10.00 W; 70.000 mJ an image, 20.000 mJ")
    rows = recorder.csv().splitlines()
    assert rows[0] == "seconds,phase,12V W (measured),INT W (measured)"
    assert [row.split(",")[1] for row in rows[1:]] == ["idle"] * recorder.idle_samples + ["run"] * 50


def test_work_shorter_than_the_period_and_simulated_labels():
    plant = Plant()
    plant.simulated = True
    recorder = Recorder(plant, idle_seconds=0.0)
    recorder.record(lambda: None)
    assert len(recorder.samples) == 2 and recorder.idle_samples == 1
    assert recorder.summary(1)["sensors"] == SIMULATED
    plot = xml.fromstring(recorder.plot())
    texts = [element.text for element in plot.iter() if element.tag.endswith("text")]
    assert sum(SIMULATED in text for text in texts) == 3  # title and both rails
    assert len([e for e in plot.iter() if e.tag.endswith("polyline")]) == 2


def test_no_rails():
    plant = Plant()
    plant.rails = dict
    with pytest.raises(DeviceError, match="plant has no power rail"):
        Recorder(plant)
