"""``python -m vitconv`` is the command ``vitconv``."""

from vitconv.cli import run

if __name__ == "__main__":
    run()
