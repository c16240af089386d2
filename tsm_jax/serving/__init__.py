"""An exported folder behind HTTP.

The process that listens (`server.py`, `app.py`) touches neither videos nor the network: videos are
decoded in confined processes (`decoding.py`), the network runs in a process of its own
(`engine.py`), and either may die without taking a request of others with it.
"""
