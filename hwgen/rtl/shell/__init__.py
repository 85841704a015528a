"""What a board without a processor needs around the machine: memory controller, host link, and the shell that wires them."""
