"""`python -m codedgrad`."""

import sys

from codedgrad.cli import main

sys.exit(main())
