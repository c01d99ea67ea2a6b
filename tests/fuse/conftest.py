from tests import tiny_networks  # noqa: F401, registers them
