"""`python -m accelerator` is the `accelerator` command."""

from .cli import main

if __name__ == "__main__":
    main()
