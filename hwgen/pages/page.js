"use strict";
// Tables that sort: a click on a column's head. Rows of a block's sum stand only in the order of the model.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], original = [...body.rows];
  const value = (row, i) => {
    const cell = row.cells[i], number = parseFloat((cell.dataset.v ?? cell.textContent).replace(/,/g, ""));
    return Number.isNaN(number) ? cell.textContent : number;
  };
  [...table.tHead.rows[0].cells].forEach((head, i) => head.addEventListener("click", () => {
    const was = head.getAttribute("aria-sort");
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    let rows = original;
    if (was !== "ascending") {  // numbers: the largest first, then the smallest, then as it was
      const down = was === null, way = down ? -1 : 1;
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      rows = original.filter((row) => !row.classList.contains("block")).sort((a, b) => {
        const x = value(a, i), y = value(b, i);
        return way * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
      });
    }
    body.replaceChildren(...rows);
  }));
}

// Tables of which a search field shows the rows that hold its words.
for (const field of document.querySelectorAll("input[data-filter]")) {
  const body = document.getElementById(field.dataset.filter).tBodies[0];
  field.addEventListener("input", () => {
    const words = field.value.toLowerCase().split(/\s+/);
    for (const row of body.rows) row.hidden = !words.every((word) => row.textContent.toLowerCase().includes(word));
  });
}

// Timelines: wheel or +/- zooms about the pointer, dragging or arrows move, a double click shows all of it.
const tip = document.createElement("div");
tip.className = "tip";
document.body.append(tip);

class Timeline {
  constructor(canvas) {
    Object.assign(this, JSON.parse(document.getElementById(canvas.dataset.from).textContent));
    this.canvas = canvas;
    this.lanes = [["array", this.array], ...this.units.map((unit, i) => [unit, this.bars[i]])];
    this.row = 26;
    this.left = 96;
    this.show(0, this.cycles);
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(Math.exp(event.deltaY * 0.0015), this.at(event.offsetX));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => {
      this.drag = { x: event.offsetX, from: this.from };
      canvas.setPointerCapture(event.pointerId);
    });
    canvas.addEventListener("pointerup", () => { this.drag = null; });
    canvas.addEventListener("pointermove", (event) => this.hover(event));
    canvas.addEventListener("pointerleave", () => { tip.style.display = "none"; });
    canvas.addEventListener("dblclick", () => this.show(0, this.cycles));
    canvas.addEventListener("keydown", (event) => {
      const span = this.to - this.from, middle = (this.from + this.to) / 2;
      const act = {
        "+": () => this.zoom(0.5, middle), "-": () => this.zoom(2, middle), "0": () => this.show(0, this.cycles),
        ArrowLeft: () => this.show(this.from - span / 4, this.to - span / 4),
        ArrowRight: () => this.show(this.from + span / 4, this.to + span / 4),
      }[event.key];
      if (act) { event.preventDefault(); act(); }
    });
    for (const button of canvas.parentElement.querySelectorAll("button")) {
      button.addEventListener("click", () => canvas.dispatchEvent(new KeyboardEvent("keydown", { key: button.value })));
    }
    new ResizeObserver(() => this.ask()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.ask());
  }
  width() { return Math.max(50, this.canvas.clientWidth - this.left - 8); }
  at(x) { return this.from + (x - this.left) / this.width() * (this.to - this.from); }
  zoom(factor, about) {
    const span = Math.min(this.cycles, Math.max(50, (this.to - this.from) * factor));
    const share = Math.min(1, Math.max(0, (about - this.from) / (this.to - this.from)));
    this.show(about - share * span, about - share * span + span);
  }
  show(from, to) {
    const span = Math.min(this.cycles, to - from);
    this.from = Math.min(Math.max(0, from), this.cycles - span);
    this.to = this.from + span;
    this.ask();
  }
  ask() {
    if (!this.asked) { this.asked = true; requestAnimationFrame(() => { this.asked = false; this.draw(); }); }
  }
  hover(event) {
    if (this.drag) {
      const moved = (this.drag.x - event.offsetX) / this.width() * (this.to - this.from), span = this.to - this.from;
      this.show(this.drag.from + moved, this.drag.from + moved + span);
      return;
    }
    const lane = this.lanes[Math.floor(event.offsetY / this.row)], cycle = this.at(event.offsetX);
    const slack = 2 * (this.to - this.from) / this.width();
    const found = lane && event.offsetX > this.left && lane[1].find(([start, long]) => cycle >= start - slack && cycle <= start + long + slack);
    tip.style.display = found ? "block" : "none";
    if (found) {
      const [start, long, name, cause] = found;
      tip.textContent = `${this.names[name]}${cause === undefined ? "" : " " + this.causes[cause]}: `
        + `${start.toLocaleString("en")} to ${(start + long).toLocaleString("en")}, ${long.toLocaleString("en")} cycles`;
      tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${event.clientY + 14}px`;
    }
  }
  draw() {
    const canvas = this.canvas, ratio = devicePixelRatio || 1, height = this.row * this.lanes.length + 24;
    canvas.style.height = `${height}px`;
    canvas.width = canvas.clientWidth * ratio;
    canvas.height = height * ratio;
    const pen = canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(`--${name}`).trim();
    pen.scale(ratio, ratio);
    pen.font = "12px system-ui, sans-serif";
    const scale = this.width() / (this.to - this.from);
    pen.strokeStyle = colour("line");
    pen.fillStyle = colour("quiet");
    const rough = (this.to - this.from) / 8, ten = 10 ** Math.floor(Math.log10(rough));
    const step = ten * [1, 2, 5, 10].find((n) => n * ten >= rough);
    pen.beginPath();
    for (let tick = Math.ceil(this.from / step) * step; tick <= this.to; tick += step) {
      const x = this.left + (tick - this.from) * scale;
      pen.moveTo(x, 0);
      pen.lineTo(x, height - 18);
      pen.fillText(Math.round(tick).toLocaleString("en"), x, height - 5);
    }
    pen.stroke();
    pen.fillText("cycles", 4, height - 5);
    const fills = this.causes.map(colour);
    this.lanes.forEach(([name, bars], i) => {
      const top = i * this.row;
      pen.fillStyle = colour("ink");
      pen.fillText(`${name} ${this.shares[i]}`, 4, top + 17);
      pen.fillStyle = i ? colour(name) : "";
      for (const [start, long, , cause] of bars) {
        if (start + long < this.from || start > this.to) continue;
        const x = this.left + Math.max(0, start - this.from) * scale;
        const end = this.left + (Math.min(this.to, start + long) - this.from) * scale;
        if (cause !== undefined) pen.fillStyle = fills[cause];
        pen.fillRect(x, top + 4, Math.max(0.4, end - x - (end - x > 3 ? 0.5 : 0)), this.row - 8);
      }
    });
  }
}
const timelines = [...document.querySelectorAll("canvas[data-from]")].map((canvas) => new Timeline(canvas));
