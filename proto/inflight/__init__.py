"""What clients of an inflight server import: `inflight.v1`. It needs grpcio and protobuf, nothing else."""
