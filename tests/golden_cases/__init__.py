"""Drivers of the golden vectors: one module per method, found by the method's name.

A driver has one function, ``run(inputs, params) -> outputs``: the ``in_*`` and the ``out_*`` arrays as tensors, named
without their prefix, and ``meta["params"]``. It tells the kinds of a method's vectors apart by the names and dimensions
of the inputs and by the parameters, never by a file's name, and takes every size from the arrays. It calls the library
for the method itself; what belongs to another layer (stitching tiles, undoing a window permutation, a projector given
as a matrix) is done in the driver.

Optional: ``UNORDERED``, names of index outputs whose last axis the method's page declares to be a set.
"""
