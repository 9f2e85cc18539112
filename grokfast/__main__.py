"""`python -m grokfast` is `grokfast`."""

import sys

from grokfast.cli import main

sys.exit(main())
