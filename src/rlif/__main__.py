"""`python -m rlif`: the same as the command `rlif`."""

from rlif.cli.main import main

if __name__ == "__main__":
    main()
