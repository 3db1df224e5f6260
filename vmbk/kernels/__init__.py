"""Numba kernels: arrays in, arrays out, no I/O, no objects, never raising.

One module per family; `vmbk.kernels.jit` holds the only compiler flags. Arguments are checked by
the public functions that call the kernels, never here. Import a kernel inside the function that
needs it, so that ``import vmbk`` compiles nothing.
"""
