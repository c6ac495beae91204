"""Drivers of the golden vectors: one module per method, found by the method's name.

A driver is one function::

    def run(inputs: Meta[Tensor], params: Meta[Any]) -> dict[str, Tensor]

It gets the ``in_*`` arrays as tensors, named without their prefix, and ``meta["params"]``, and gives the ``out_*`` arrays by
name (more of them than a vector expects do no harm). It tells the kinds of a method's vectors apart by the names and
dimensions of the inputs and by the parameters, never by a file's name. It calls the library for the method itself; what
belongs to another layer (stitching tiles, undoing a window permutation, a projector given as a matrix) is done in the driver.

Vectors of the same functions with other settings have to pass as well, so:

* **Nothing is ignored.** An input or a parameter that ``run`` did not read fails the vector by name. Ways to read:
  ``params["keep"]``, ``params.get("alpha", 1.0)``; ``common.make`` reads the budget and every hyper-parameter that the vector
  names as the method does; ``params.one_of("newline", ("grid", "frame"), "grid")`` where only some values can be served,
  refused by name otherwise; ``params.agree(image_len=n)`` for what only repeats a size; ``params.noted("select_layer")``
  for what tells where the inputs were taken.
* **Nothing is assumed** that a parameter or an array says: not the number of prefix rows, a side of a grid, a depth, a preset.
  A default stands only for what a vector leaves out.

Optional: ``UNORDERED``, names of index outputs whose last axis the method's page declares to be a set.

Other settings than those on disk are made by plain loops in ``tests/golden_settings``, one module per method, and go through
the same drivers.
"""
