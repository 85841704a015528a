"""The report page: parts under the model's names, and what a browser makes of the page."""

import json
import re
import shutil
import subprocess

import pytest

from hwgen import parts, steps
from hwgen.example import write
from hwgen.pages import report as report_page

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PROBE = """<script>
addEventListener("load", () => {
  const said = {}, line = timelines[0], pen = line.canvas.getContext("2d"), ratio = devicePixelRatio || 1;
  const longest = line.array.reduce((a, b) => b[1] > a[1] ? b : a);
  line.show(longest[0], longest[0] + longest[1]);
  line.draw();
  said.pixel = [...pen.getImageData((line.left + line.width() / 2) * ratio, 13 * ratio, 1, 1).data].slice(0, 3);
  const cause = line.causes[longest[3]];
  said.legend = getComputedStyle(document.querySelector(`[data-colour=${cause}]`)).backgroundColor;
  said.colours = new Set([...document.querySelectorAll("[data-colour]")].map((i) => getComputedStyle(i).backgroundColor)).size;
  line.show(0, line.cycles);
  line.canvas.dispatchEvent(new WheelEvent("wheel", { deltaY: -900, cancelable: true }));
  said.share = (line.to - line.from) / line.cycles;
  line.canvas.parentElement.querySelector("button[value='0']").click();
  said.all = line.to - line.from === line.cycles;
  const table = document.querySelector("table.sortable");
  table.tHead.rows[0].cells[1].click();
  said.sorted = [...table.tBodies[0].rows].map((row) => +row.cells[1].textContent.replace(/,/g, ""));
  const long = 20000;
  line.cycles = 300 * long;
  line.hold(line.lanes.map((_, k) => Array.from({ length: long }, (_, j) => [300 * j, 290, 0, k ? undefined : 1])));
  line.show(0, line.cycles);
  line.draw();
  said.crowded = [...pen.getImageData((line.left + line.width() / 2) * ratio, 13 * ratio, 1, 1).data].slice(0, 3);
  said.second = getComputedStyle(document.querySelector(`[data-colour=${line.causes[1]}]`)).backgroundColor;
  said.drawn = [];
  said.fast = 1e9;
  const fill = pen.fillRect;
  for (let n = 0; n < 60; n++) {
    let count = 0;
    pen.fillRect = (...where) => { count++; fill.apply(pen, where); };
    const start = performance.now();
    line.draw();
    pen.getImageData(0, 0, 1, 1);
    said.fast = Math.min(said.fast, performance.now() - start);
    said.drawn.push(count);
    line.zoom(0.9, line.cycles / 3);
  }
  said.rows = line.lanes.length * line.width();
  said.dark = getComputedStyle(document.body).backgroundColor;
  document.body.dataset.said = JSON.stringify(said);
});
</script>"""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    write("m3vit-digits", folder / "digits.onnx")
    settings = {"array_outputs": "16", "array_inputs": "16"}
    return steps.build({"": folder / "digits.onnx"}, folder / "b", settings=settings, stop_after="report").report


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)}")
    return [found, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,1600"]


def test_names_of_parts():
    names = ["blocks.blocks.0.attn.scores.0", "blocks.blocks.0.attn.scores.1"]
    names += ["blocks.0.norm1", "blocks.0.mlp.0", "blocks.0.mlp.2"]
    entries = [{"of": name} for name in names] + [{"of": "blocks.0.moe.experts.7.w1", "expert": 7}, {"of": "head"}]
    found = parts.places(entries)
    assert found[names[0]] == found[names[1]] == ("blocks.0", "attn.scores")
    assert found["blocks.0.mlp.0"] == ("blocks.0", "mlp.0") and found["blocks.0.mlp.2"] == ("blocks.0", "mlp.2")
    assert found["blocks.0.moe.experts.7.w1"] == ("blocks.0", "moe.experts.w1") and found["head"] == ("", "head")


def test_parts_of_what_is_cut_and_moved():
    """Blocks, pieces and transfers of a mapped network go by the names of its values, however many there are."""
    cut = [f"blocks.0.mlp.fc1.block{k}{piece}" for k in range(40) for piece in (".piece0", ".piece1", "")]
    cut += ["blocks.0.mlp.fc1.piece0", "blocks.0.mlp.fc1.piece1", "blocks.0.mlp.fc1", "blocks.0.mlp.conv1", "blocks.0.mlp.conv2"]
    cut += [f"blocks.0.mlp.fc1.{kind}{k}" for kind in ("fetch", "spill") for k in range(90)]
    cut += [f"blocks.0.attn.bias.{table}.load{k}" for table in range(12) for k in range(30)]
    cut += [f"blocks.0.attn.q.maxima{k}.ones" for k in range(5)] + ["layernorm_0", "layernorm_1", "layernorm_1.block0"]
    found = {part for _, part in parts.places({"of": name} for name in cut).values()}
    assert found == {"mlp.fc1", "mlp.conv1", "mlp.conv2", "attn.bias", "attn.q", "layernorm_0", "layernorm_1"}


def test_every_cycle_of_the_array_belongs_to_one_part(report):
    for task in report["tasks"].values():
        rounding = len(task["operations"]) * len(task["causes"])
        assert abs(sum(row["cycles"] for row in parts.parts(task)) - sum(task["causes"].values())) <= rounding


def test_page_is_self_contained_and_tells_what_it_is_of(report):
    checks = {"images": 3, "engine": "golden", "task": "", "checks": [{"name": "<label>", "passed": False, "found": "2 of 3"}]}
    page = report_page.page(report, checks=checks)
    assert not re.search(r"https?:|<link|src=|url\(", page) and len(page) < 1_000_000
    for text in ("digits.onnx", report["version"], "array_outputs", "&lt;label&gt;", "Load of the experts", "Roofline"):
        assert text in page, text
    assert page == report_page.page(report, checks=checks)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_in_a_browser(report, browser, tmp_path, dark):
    """Colours of the timeline are those of its legend; it zooms; tables sort; in both colour schemes.

    A frame of 120,000 instructions draws a rectangle a pixel of each row at most, so its time does not grow with the program.
    """
    page = tmp_path / "page.html"
    page.write_text(report_page.page(report).replace("</html>", PROBE + "</html>"))
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else ["--blink-settings=preferredColorScheme=1"]
    command = [*browser, *scheme, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    found = re.search(r'data-said="(.*?)"', ran.stdout)
    assert found, ran.stderr
    said = json.loads(found[1].replace("&quot;", '"'))
    assert said["legend"] == "rgb({}, {}, {})".format(*said["pixel"])
    assert said["colours"] == 6 and 0 < said["share"] < 0.5 and said["all"]
    assert said["sorted"] == sorted(said["sorted"], reverse=True) and said["sorted"][0] > 0
    assert said["second"] == "rgb({}, {}, {})".format(*said["crowded"])
    assert 0 < min(said["drawn"]) and max(said["drawn"]) <= said["rows"] + 12
    assert said["fast"] < 1000 / 60  # the fastest of 60 frames: others work on this machine too
    assert said["dark"] == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_screenshot(report, browser, tmp_path, dark):
    """What a person sees: the scheme's paper in the margin, the causes' colours in the timeline, text on both."""
    images = pytest.importorskip("PIL.Image")
    page, shot = tmp_path / "page.html", tmp_path / "page.png"
    page.write_text(report_page.page(report))
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    command = [*browser, scheme, f"--user-data-dir={tmp_path / 'profile'}", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, capture_output=True, timeout=300, check=True)
    with images.open(shot) as picture:
        pixels = picture.convert("RGB")
        counts = dict((colour, n) for n, colour in pixels.getcolors(1 << 24))
        assert pixels.getpixel((3, 3)) == ((20, 24, 29) if dark else (255, 255, 255))
    ink, active = ((230, 233, 237), (124, 203, 114)) if dark else ((27, 31, 36), (84, 162, 75))
    assert counts.get(ink, 0) > 1000 and counts.get(active, 0) > 1000


def test_checks_come_from_verify(hwgen, tmp_path):
    """Refused by name before anything is written: without a page, and a file that is no verification."""
    code, _, err = hwgen("report", tmp_path / "no.bundle", "--checks", tmp_path / "c.json")
    assert code == 2 and "c.json: shown on a page, with --html" in err
