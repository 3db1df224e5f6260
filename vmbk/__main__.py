"""``python -m vmbk``: the command line."""

from vmbk.cli import main

if __name__ == "__main__":
    main()
