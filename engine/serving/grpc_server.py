"""The gRPC server: the service, health, reflection, and the options that keep long streams alive."""

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.errors import ConfigError
from engine.serving.async_engine import AsyncEngine
from engine.serving.interceptor import StatusInterceptor
from engine.serving.options import ServerOptions
from engine.serving.pacing import Pacer
from engine.serving.servicer import GenerationService
from inflight import v1 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Generation"].full_name


class GrpcServer:
    """Serves one engine, which whoever made it starts and stops. Health counts as good from `start` on."""

    def __init__(self, engine: AsyncEngine, options: ServerOptions) -> None:
        self._options = options
        pacer = Pacer(options.stream_interval, options.max_messages_per_second)
        service = GenerationService(engine, pacer, options.stall_seconds)
        interceptor = StatusInterceptor(SERVICE, service.refuse_unreadable)
        self._server = grpc.aio.server(interceptors=[interceptor], options=_channel_options(options))
        self._health = health.aio.HealthServicer()
        pb.add_GenerationServicer_to_server(service, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
        )

    async def start(self) -> str:
        """Listen, and return the address, "host:port". Raises ConfigError."""
        host, port = self._options.host, self._options.port
        host = f"[{host}]" if ":" in host else host
        try:
            port = self._server.add_insecure_port(f"{host}:{port}")
        except RuntimeError:
            raise ConfigError(
                f"cannot listen on {host}:{port}: in use, or not an address of this machine"
            ) from None
        for service in ("", SERVICE):
            await self._health.set(service, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        return f"{host}:{port}"

    async def set_not_serving(self) -> None:
        """From now on health is NOT_SERVING. Calls are still answered."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, grace: float) -> None:
        """Take no more calls, let those that run end within `grace` seconds, cancel the rest."""
        await self._server.stop(grace)


def _channel_options(options: ServerOptions) -> list[tuple[str, int]]:
    return [
        ("grpc.max_receive_message_length", options.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # A second server on the port is an error, not half of the connections.
        ("grpc.so_reuseport", 0),
        # Clients may ping every 10 s, also while nothing is sent for long: never GOAWAY "too_many_pings".
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 0),
        ("grpc.keepalive_permit_without_calls", 1),
        # A client that vanished without a word is noticed, and its requests aborted.
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
    ]
