"""Runs the command line as ``python -m tollkeeper``. Nothing else happens here."""

import sys

from tollkeeper.cli import main

sys.exit(main())
