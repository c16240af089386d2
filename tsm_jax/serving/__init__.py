"""Serves an exported folder over HTTP.

The listening process (`server.py`, `app.py`) touches neither videos nor the network: confined
processes decode the videos (`decoding.py`), and a separate process runs the network (`engine.py`).
Any of them may die without failing the requests of others.
"""
