"""PostgreSQL, Valkey and S3 from wheels: the services that production reaches by address.

The processes of unlatent itself can be started over them.

No root, no Docker, no network. Linux only: processes are told apart by what /proc says of them.
"""

from __future__ import annotations

from worker.localstack.processes import LocalStackError
from worker.localstack.stack import LocalStack

__all__ = ["LocalStack", "LocalStackError"]
