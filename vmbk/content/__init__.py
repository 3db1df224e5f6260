"""What disks hold: cut into chunks, fixed and found in the content, and measured block by block.

`chunking` cuts, `comparison` says which way of cutting stores least over several states of a disk,
and `statistics` measures entropy, compressibility, zeros and duplicates.
"""
