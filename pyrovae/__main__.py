"""The command ``pyrovae``, also as ``python -m pyrovae``."""

import signal

# Until `main` handles interrupts, one ends the process without a traceback.
signal.signal(signal.SIGINT, signal.SIG_DFL)

from pyrovae.cli import main  # noqa: E402

if __name__ == "__main__":
    main()
