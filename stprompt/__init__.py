__version__ = "0.1.0"

import warnings

warnings.filterwarnings("ignore", "IProgress not found")     # progress is shown as text, in notebooks too: widgets bloat them
