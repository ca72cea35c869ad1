"""Shapes of replies, for the published description: what a client can rely on, key by key.

One module for each dialect: its whole replies, then the chunks or events of its streams.

A key that is `NotRequired` is left out where there is nothing to tell; no reply has a key that is
not here. `openapi.py` puts these shapes into the description, and a test holds every reply to them.
"""
