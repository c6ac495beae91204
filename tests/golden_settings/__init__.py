"""Golden vectors of other settings than those on disk, made by plain loops that share no code with the library.

One module per method, found by its name: ``cases()`` gives, by a name, the inputs and the expected outputs as arrays and the
parameters, as ``in_*``, ``out_*`` and ``meta["params"]`` of a file hold them. Everything is counted in float64.
"""
