"""Record batches: Apache Kafka's RecordBatch v2 bytes, checked, stamped, encoded and decoded.

Knows nothing of segments, stores or partitions.
"""
