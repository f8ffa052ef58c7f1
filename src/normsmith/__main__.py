"""`python -m normsmith` is the command."""

from normsmith.cli import main

main()
