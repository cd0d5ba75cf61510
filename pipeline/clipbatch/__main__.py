"""`python -m clipbatch`."""

from clipbatch.cli import main

main()
