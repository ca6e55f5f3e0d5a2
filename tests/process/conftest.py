"""Lets the tests of this folder import `ledger_worker`: in pytest's import mode, their folder is not on the path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
