"""A broker's parts: intake, ledger, reading and the work behind the scenes, all driven through ports.

Knows nothing of gRPC, and of no store but through its port.
"""
