"""``python -m fluxir.cli``: the same as the command ``fluxir``."""

from __future__ import annotations

import sys

from . import main

sys.exit(main())
