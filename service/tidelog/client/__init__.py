"""The client: producer, consumer and administration over gRPC. Imports nothing of a broker."""
