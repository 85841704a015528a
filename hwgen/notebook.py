"""The notebook of a deployment package: runs, compares, plots. Cells of text and code, Jupyter's format 4."""

from __future__ import annotations

import json

CELLS: list[tuple[str, str]] = [
    (
        "markdown",
        "# {name} on {board}\n\nLoads the accelerator, runs the package's images, compares with the simulation's outputs "
        "and plots latency and power. Set `DEVICE` to `'sim'` where there is no board.",
    ),
    (
        "code",
        "import numpy as np\nfrom IPython.display import SVG, display\n\nimport {overlay}\n"
        "from {overlay}.driver.energy import Recorder\nfrom {overlay}.driver.measure import measure\n\nDEVICE = 'board'\n"
        "accelerator = {overlay}.open(DEVICE)  # prints the clock that it really runs at\n"
        "print('tasks:', accelerator.tasks)",
    ),
    (
        "code",
        "data = np.load({overlay}.FOLDER / 'self_test.npz')\ntask = accelerator.tasks[0]\n"
        "images = {{name: data[f'{{task}}|in|{{name}}'] for name in accelerator.bundle.inputs(task)}}\n"
        "outputs = accelerator(images, task)\nfor name, values in outputs.items():\n"
        "    same = np.array_equal(values, data[f'{{task}}|out|{{name}}'])\n"
        "    print(name, values.shape, 'bit for bit as simulated' if same else 'NOT as simulated')",
    ),
    ("markdown", "## Latency and power\n\nThe same images again and again, while the board's rails are sampled."),
    (
        "code",
        "REPEAT = 250 if DEVICE == 'board' else 5\n"
        "many = {{name: np.concatenate([array] * REPEAT) for name, array in images.items()}}\n"
        "recorder = Recorder(accelerator.device)\nfound = recorder.record(lambda: measure(accelerator, many, task))\n"
        "for key, value in found.summary().items():\n    print(key, value)\nprint(recorder.text(found.images))",
    ),
    ("code", "display(SVG(data=recorder.plot()))"),
    (
        "code",
        "from {overlay}.driver.plot import histogram\n\n"
        "display(SVG(data=histogram([1e3 * s for s in found.latencies], 'latency of a run', 'ms', accelerator.device)))",
    ),
    (
        "markdown",
        "## Switching task\n\nTasks share all weights but their gates, so alternating them moves no more bytes.",
    ),
    (
        "code",
        "if len(accelerator.tasks) > 1:\n    from {overlay}.driver.multitask import overhead\n\n"
        "    print(overhead(accelerator, images).text())",
    ),
    ("code", "accelerator.close()"),
]


def notebook(name: str, board: str, overlay: str) -> str:
    """The notebook as JSON. overlay: name of the package that holds bundle and driver."""
    cells = []
    for number, (kind, text) in enumerate(CELLS):
        source = text.format(name=name, board=board, overlay=overlay).splitlines(keepends=True)
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source}
        cells.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps({"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
