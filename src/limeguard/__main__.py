"""`python -m limeguard` is the command `limeguard`."""

from limeguard.cli.main import main

if __name__ == "__main__":
    main()
