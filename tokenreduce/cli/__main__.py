"""``python -m tokenreduce.cli``."""

from tokenreduce.cli import main

main()
