"""Metrics of traces that matter to backup, all streaming: what changes, how often, how spread.

Each returns a Polars frame, or an object of several from one pass, whose columns its docstring
names; a null ``volume`` means all volumes together. The functions are public names of ``vmbk``.
"""
