"""Errors that users can act on: one line with the file, the place and the remedy."""


class SOHESError(Exception):
    """Something a user can mend; the tools print it in a line and end with exit code 1 or the one they document."""


class InputError(SOHESError, ValueError):
    """A file, a folder or an argument from outside that cannot be used as it is."""


class ConfigError(SOHESError, ValueError):
    """A config file or an override that cannot be used as it is."""


class WeightsError(SOHESError, ValueError):
    """A weights file that cannot be read, or does not fit the model."""


class CorruptFileError(InputError):
    """A file that was written whole, once, and is damaged now."""


class FolderBusyError(InputError):
    """A folder that another process is writing into."""


class OutputError(SOHESError, OSError):
    """A file that cannot be written: a full disk, no permission. The message names it and the remedy."""
