"""downmix's command line with the tests' networks registered."""

from downmix.cli import main
from tests import tiny_networks  # noqa: F401

if __name__ == "__main__":
    main()
