"""`python -m distill` is the command `distill`."""

from distill.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
