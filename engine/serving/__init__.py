"""The async engine, and the gRPC server, metrics and command line around it."""
