"""The embedded default: real servers from wheels, and the launcher of `make run`. The service uses none."""
