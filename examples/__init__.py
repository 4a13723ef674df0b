"""Worlds to run fd_async on."""
