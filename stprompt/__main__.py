"python -m stprompt: the command `stprompt`, for launchers that start modules."
import sys

from .command import main

sys.exit(main())
