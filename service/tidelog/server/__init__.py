"""The gRPC server: the public contract on one side, a broker behind ports on the other.

Protobuf stops here, at `wire`.
"""
