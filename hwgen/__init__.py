"""hwgen: FPGA accelerators for Vision Transformers, generated and simulated with open tools."""

__version__ = "0.1.0"
