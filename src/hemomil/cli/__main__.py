"""`python -m hemomil.cli`: the same as `hemomil`."""

from hemomil.cli import main

main()
