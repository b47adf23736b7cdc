"""The metadata store: who leads, what is committed, and what may go. The one package that knows SQL.

Knows nothing of bytes, brokers' memory or the network between brokers.
"""
