"""A message under way, with a repair of what Celery makes of one.

A worker has a place for each message it may hold. When Redis is away at the moment of an
acknowledgement, Celery logs the failure and goes on, and the message's place stays taken for ever
(kombu 5.7, `redis.QoS.ack`). Once every place is lost, the worker takes no message again, and since
it no longer asks for any, it does not even notice that its connection is gone.
"""

from __future__ import annotations

from celery.worker.request import Request as CeleryRequest
from kombu.transport.virtual import QoS


class Request(CeleryRequest):  # type: ignore[misc]  # Celery is untyped
    """Gives the place back even when Redis did not hear of it.

    The message itself is delivered again after the visibility timeout, and finds its image ended.
    """

    def acknowledge(self) -> None:
        """Acknowledge the message."""
        try:
            super().acknowledge()
        finally:
            self._free_the_place()

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002 - Celery's signature
        """Refuse the message, or put it back."""
        try:
            super().reject(requeue=requeue)
        finally:
            self._free_the_place()

    def _free_the_place(self) -> None:
        if not self.message.acknowledged:
            QoS.ack(self.message.channel.qos, self.message.delivery_tag)
