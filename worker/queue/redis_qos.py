"""Stops kombu's Redis transport (5.7) from leaking prefetch slots when Redis is down.

Each unacknowledged message takes a prefetch slot. In kombu, a slot is lost when Redis is down as
its message is acknowledged. A worker without slots never asks for a message again, and so does not
notice that its connection is dead. An acknowledgement over a connection that was replaced
meanwhile, and a message popped while Redis refuses writes for want of memory, end the whole
process. Here all three cost nothing: the ledger knows what was done, and a message that was not
acknowledged comes back after the visibility timeout.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog
from kombu.transport import redis, virtual
from redis.exceptions import OutOfMemoryError

if TYPE_CHECKING:
    from kombu.transport.virtual import Message

_log = structlog.get_logger(__name__)


class LeakFreeQoS(redis.QoS):  # type: ignore[misc]  # kombu is untyped
    """The messages under way on one channel."""

    def append(self, message: Message, delivery_tag: str) -> None:
        """Take a place, even if Redis has no room to note that it may have to deliver again."""
        try:
            super().append(message, delivery_tag)
        except OutOfMemoryError:
            _log.warning("redis_memory_exhausted", delivery_tag=delivery_tag)
            virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Give the place back, and raise what kept Redis from hearing of it."""
        try:
            if not self.channel.closed:
                super().ack(delivery_tag)
        finally:
            virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - kombu's signature
        """Give the place back; the message goes back to its queue now or after the timeout."""
        try:
            if not self.channel.closed:
                super().reject(delivery_tag, requeue=requeue)
        finally:
            virtual.QoS.ack(self, delivery_tag)


def install_leak_free_qos() -> None:
    """Give every channel that this process opens from now on the QoS above."""
    redis.Channel.QoS = LeakFreeQoS
