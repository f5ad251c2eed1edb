"""`python -m sapnet_cli` is the command `sapnet`."""

from sapnet_cli.cli.app import main

if __name__ == "__main__":
    main()
