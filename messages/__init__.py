"""The catalogue of messages, their wire format, the sockets that carry them and the in-memory twin of those.

Lowest layer: imports nothing of midflight, and no torch. Start with `catalogue.py`, then one topic file.
"""
