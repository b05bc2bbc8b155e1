"""`python -m mooring`."""

from .cli import main

main()
