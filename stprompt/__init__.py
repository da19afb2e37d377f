__version__ = "0.1.0"

import warnings

warnings.filterwarnings("ignore", "IProgress not found")     # progress is shown as text, in notebooks too: widgets bloat them


def __getattr__(name):
    "stprompt.Detector, loaded on first use: importing the package stays light."
    if name != "Detector": raise AttributeError(f"module 'stprompt' has no attribute {name!r}")
    from .detector import Detector
    return Detector
