"""`python -m fastecho`."""

from .cli import main

main()
