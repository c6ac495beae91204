"""One file per operation: sizes, the operation as the methods call it, and the same mathematics written plainly.

``SIZES``: what to measure; ``CPU_LIMIT``: largest product of a size's numbers on a CPU; ``case(size, device, dtype)``.
The plain form follows the formulas of the papers, with whole tables where these write whole tables.
"""
