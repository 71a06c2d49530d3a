"""Loads what runs notebooks, which takes as long to load as PyTorch: pyproject.toml keeps it from all other tests."""

pytest_plugins = ["nbmake.pytest_plugin"]
