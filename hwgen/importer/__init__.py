"""ONNX -> tensor IR: `rules` (what a rule sees), `operators` (one rule an operator), `walk` and `importer` (the driver)."""
