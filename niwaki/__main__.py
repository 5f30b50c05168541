"""`python -m niwaki`: the command line, whatever packages lie in the folder where it is called."""

import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts the current folder first, where a `model` or `stream` of the caller's own would hide ours.
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from stream.cli import main

    main()
