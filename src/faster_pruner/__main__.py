"""`python -m faster_pruner`."""

from faster_pruner.cli import main

if __name__ == "__main__":
    main()
