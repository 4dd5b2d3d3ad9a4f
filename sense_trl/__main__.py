"""`python -m sense_trl` is `sense-trl`."""

import sys

from sense_trl.cli.main import main

sys.exit(main())
