"""The memory ledger keeps the contract."""

from __future__ import annotations

import pytest

from tests.support.ledger_contract import LedgerContract, MakeLedger
from worker.ledger.memory import MemoryLedger


class TestMemoryLedger(LedgerContract):
    """The contract over memory."""

    @pytest.fixture
    def make_ledger(self) -> MakeLedger:
        """Build memory ledgers."""
        return lambda deaths=None: MemoryLedger(deaths=deaths)
