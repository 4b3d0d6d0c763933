"""The embedded default: real servers from PyPI wheels and the launcher behind `make run`. The service never imports it."""
