"STPrompt in the open: weakly supervised video anomaly detection and localization on a frozen CLIP."
__version__ = "0.3.0"

import warnings

# progress is shown as text, in notebooks too: widgets bloat them
warnings.filterwarnings("ignore", "IProgress not found")


def __getattr__(name: str) -> type:
    "stprompt.Detector, loaded on first use: importing the package stays light."
    if name != "Detector": raise AttributeError(f"module 'stprompt' has no attribute {name!r}")
    from .detector import Detector
    return Detector
