"""Object stores: where bytes live once they are durable.

Knows nothing of what the bytes mean.
"""
