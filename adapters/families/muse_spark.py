"""Muse Spark: pictures as in Muse Glimmer, and a mixture of experts; sounds stay whole."""

from __future__ import annotations

from tokenreduce.adapters.families.muse_glimmer import MuseGlimmer


class MuseSpark(MuseGlimmer):
    model_types = ("muse_spark",)
    remarks = "dynamic resolution, window attention; a frame is a temporal patch; sounds stay whole"
