"""`python -m fxslim` is the command line."""

from fxslim.cli import main

if __name__ == "__main__":
    main()
