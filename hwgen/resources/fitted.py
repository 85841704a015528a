"""x"""
LUTS = {}
FLIP_FLOPS = {}
