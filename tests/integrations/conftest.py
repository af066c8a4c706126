"""TRL needs Python 3.11: on 3.10, where it cannot be installed, its tests are left out."""

import sys
from importlib.util import find_spec

collect_ignore_glob = ["test_trl*.py"] if sys.version_info < (3, 11) and find_spec("trl") is None else []
