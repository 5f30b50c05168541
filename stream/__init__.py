"""How events arrive, and the loop that ties learning, drift and pruning together.

The outermost room: it imports `serving`, `model` and `pruning`, and nothing imports it but the
command line. Sockets, clocks, threads, logs and environment variables live here.
"""
