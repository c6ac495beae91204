"""Make docs/families.md by running every method on every family: python docs/make_families.py [--check]"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "families.md"

if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]  # the pairs are run by what tests them
    from pairs import page

    made = page()
    if "--check" in sys.argv[1:]:
        sys.exit(
            0 if PAGE.read_text() == made else f"{PAGE} is not what the pairs say; run python docs/make_families.py"
        )
    PAGE.write_text(made)
