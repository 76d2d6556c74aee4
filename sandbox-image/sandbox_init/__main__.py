"""Run as PID 1 by path: `python3 -I -S -B …/sandbox_init/__main__.py`. `-m` would import runpy and much more."""

import sys

sys.path.insert(0, __file__.rpartition("/")[0].rpartition("/")[0])

from sandbox_init.pid1 import main  # after the path: -I leaves the script's folder out

if __name__ == "__main__":
    main()
