"The command `stprompt`, and `python -m stprompt` for launchers that start modules."
import sys


def run() -> int:
    "The command; Ctrl-C while its libraries are being loaded ends in one line, too."
    for stream in (sys.stdout, sys.stderr): stream.reconfigure(errors="replace")     # odd names of files
    try:
        from .command import main
        return main()
    except KeyboardInterrupt:
        print("stopped: nothing had begun", file=sys.stderr)
        return 130


if __name__ == "__main__": sys.exit(run())
