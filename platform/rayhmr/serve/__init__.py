"""A model behind HTTP: `app` (Ray Serve), `api` (routes), `guard` (limits, key), `page` (browser).

`host.serve` is behind jobs/serve.py; `host.running_service` is the same for a `with` block.
"""
