"""The client: producer, consumer and administration over gRPC. Imports nothing of a broker, and none of its dependencies.

connect, Log        client.py      one cluster, and what can be done with it
Brokers             connection.py  addresses, channels, which one to use next
Producer            producer.py    gathering, the Produce stream; appends.py decides what is sent again, and in which order
Consumption         consumer.py    the Consume stream, resumed after any failure
Admin               admin.py       topics, partitions, offsets, brokers
"""
