"""The subcommands of `inflight`: each has `add_arguments(parser)` and `run(args) -> exit code`.

`inflight --help` imports all of them, so they import at the top only what is cheap: no torch, no grpc.
"""
