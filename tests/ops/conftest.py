import pytest


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Runs a standard test that asks for ``option`` once for each of its class's options."""
    if "option" in metafunc.fixturenames and metafunc.cls is not None:
        options = metafunc.cls.options
        ids = ["-".join(map(str, option.values())) or "default" for option in options]
        metafunc.parametrize("option", options, ids=ids)
