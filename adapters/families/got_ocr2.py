"""GOT-OCR 2: a ViTDet tower of windows, and two strided convolutions that overlap; PP-Chart2Table is the same class."""

from __future__ import annotations

from typing import Any

from tokenreduce.adapters.families.tile_grid import TileGrid


class GotOcr2(TileGrid):
    model_types = ("got_ocr2", "pp_chart2table")
    remarks = "a ViTDet tower, whose attention cannot be listened to"
    pointwise = heard = False

    @property
    def unit(self) -> int:
        return 4

    def layers(self, tower: int = 0) -> Any:
        return []
