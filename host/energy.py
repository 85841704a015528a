"""Energy per image from sampled power rails: idle is measured before the work and subtracted; both figures are given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape

import numpy as np

from .errors import DeviceError

SIMULATED = "simulated sensors"
MEASURED = "measured"
PLOT_WIDTH, PLOT_HEIGHT, MARGIN = 720, 320, 48
COLOURS = ("#1f5fa8", "#c2571a", "#3a7d34", "#7a3d8f")


@dataclass
class Rail:
    """Figures of one rail over the work: watts idle and at work, joules with idle and without."""

    idle: float
    mean: float
    joules: float
    net_joules: float


@dataclass
class Recorder:
    """Samples every rail of a device while something runs.

    idle_seconds: how long the idle board is measured before (None: the device's choice). After `record`: `samples`
    (seconds, watts by rail), the first `idle_samples` of them idle; `seconds` of work. Every figure of a simulated
    device carries SIMULATED.
    """

    device: object
    idle_seconds: float | None = None
    samples: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    idle_samples: int = 0
    seconds: float = 0.0

    def __post_init__(self):
        self._rails = self.device.rails()
        if not self._rails:
            raise DeviceError(f"{self.device.name} has no power rail that can be read")
        if self.idle_seconds is None:
            self.idle_seconds = self.device.idle_seconds

    @property
    def label(self) -> str:
        """SIMULATED or MEASURED: what every figure must say."""
        return SIMULATED if self.device.simulated else MEASURED

    def record(self, work: Callable[[], object]):
        """Measure the idle board, then `work`; returns what `work` returns."""
        device, self.samples = self.device, []
        stop = device.every(device.sample_seconds, self._sample)
        try:
            end = device.now() + self.idle_seconds
            while device.now() < end:
                device.sleep(device.sample_seconds)
            if not self.samples:
                self._sample()
            self.idle_samples = len(self.samples)
            start = device.now()
            result = work()
            self.seconds = device.now() - start
            if len(self.samples) == self.idle_samples:  # shorter than the sampling period
                self._sample()
        finally:
            stop()
        return result

    def _sample(self) -> None:
        self.samples.append((self.device.now(), {name: read() for name, read in self._rails.items()}))

    # --- figures ------------------------------------------------------------------------------------------------

    def rails(self) -> dict[str, Rail]:
        """Figures by rail."""
        found = {}
        for name in self._rails:
            watts = np.array([sample[name] for _, sample in self.samples])
            idle, mean = watts[: self.idle_samples].mean(), watts[self.idle_samples :].mean()
            found[name] = Rail(float(idle), float(mean), mean * self.seconds, (mean - idle) * self.seconds)
        return found

    def summary(self, images: int) -> dict:
        """For `--json`: by rail watts, joules per image and images per second and watt, with idle and without."""
        rails = {}
        for name, rail in self.rails().items():
            rails[name] = {
                "idle_w": rail.idle,
                "mean_w": rail.mean,
                "joule_per_image": rail.joules / images,
                "joule_per_image_without_idle": rail.net_joules / images,
                "images_per_second_per_watt": images / rail.joules if rail.joules else None,
                "images_per_second_per_watt_without_idle": images / rail.net_joules if rail.net_joules > 0 else None,
            }
        return {"sensors": self.label, "seconds": self.seconds, "samples": len(self.samples), "rails": rails}

    def text(self, images: int) -> str:
        """The summary for people, a line a rail."""
        lines = []
        for name, rail in self.summary(images)["rails"].items():
            net = rail["images_per_second_per_watt_without_idle"]
            lines.append(
                f"rail {name} ({self.label}): {rail['mean_w']:.2f} W, idle {rail['idle_w']:.2f} W; "
                f"{rail['joule_per_image'] * 1e3:.3f} mJ an image, {rail['joule_per_image_without_idle'] * 1e3:.3f} mJ "
                f"without idle; {rail['images_per_second_per_watt']:.1f} images/s/W"
                + (f", {net:.1f} without idle" if net else "")
            )
        return "\n".join(lines)

    def csv(self) -> str:
        """The samples: seconds, phase, watts of each rail."""
        first = self.samples[0][0]
        lines = [",".join(["seconds", "phase", *(f"{name} W ({self.label})" for name in self._rails)])]
        for i, (time, watts) in enumerate(self.samples):
            phase = "idle" if i < self.idle_samples else "run"
            lines.append(",".join([f"{time - first:.9f}", phase, *(f"{watts[name]:.6f}" for name in self._rails)]))
        return "\n".join(lines) + "\n"

    def plot(self) -> str:
        """Watts over time as SVG."""
        times = np.array([time for time, _ in self.samples]) - self.samples[0][0]
        span, top = max(float(times[-1]), 1e-12), max(max(w.values()) for _, w in self.samples) * 1.1 or 1.0
        width, height = PLOT_WIDTH - 2 * MARGIN, PLOT_HEIGHT - 2 * MARGIN

        def text(x: float, y: float, what: str, anchor: str = "start", colour: str = "#222") -> str:
            return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{escape(what)}</text>'

        def at(time: float, watts: float) -> str:
            return f"{MARGIN + width * time / span:.1f},{MARGIN + height * (1 - watts / top):.1f}"

        work = MARGIN + width * float(times[min(self.idle_samples, len(times) - 1)]) / span
        parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" font-family="sans-serif" '
            'font-size="12"><rect width="100%" height="100%" fill="#fff"/>',
            text(MARGIN, 20, f"Power, {self.label}: {self.device.name}"),
            f'<path d="M{MARGIN},{MARGIN}V{MARGIN + height}H{MARGIN + width}" fill="none" stroke="#222"/>',
            f'<path d="M{work:.1f},{MARGIN}V{MARGIN + height}" stroke="#999" stroke-dasharray="4"/>',
            text(work + 4, MARGIN + 12, "run"),
            text(MARGIN - 6, MARGIN + 10, f"{top:.3g} W", "end"),
            text(MARGIN - 6, MARGIN + height, "0", "end"),
            text(MARGIN + width, MARGIN + height + 18, f"{span:.3g} s", "end"),
        ]
        for i, name in enumerate(self._rails):
            colour = COLOURS[i % len(COLOURS)]
            points = " ".join(at(time, watts[name]) for time, (_, watts) in zip(times, self.samples, strict=True))
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
            parts.append(text(MARGIN + 90 * i, PLOT_HEIGHT - 8, f"{name} ({self.label})", colour=colour))
        return "\n".join([*parts, "</svg>"]) + "\n"
