"""`python -m minift` is the command `minift`."""

from minift.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
