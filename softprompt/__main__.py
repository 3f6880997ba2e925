"""``python -m softprompt``."""

from softprompt.cli.main import main

if __name__ == "__main__":
    main()
