"""`python -m mgie_jax.cli`, for where the `mgie` script is not on the path."""

import sys

from mgie_jax.cli import main

sys.exit(main())
