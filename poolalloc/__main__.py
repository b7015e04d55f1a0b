"""`python -m poolalloc` is the `poolalloc` command."""

from poolalloc.cli import main

if __name__ == "__main__":
    main()
