"""Every error that nonet raises on purpose, in one tree.

    NonetError
    ├── UserError                    the caller can mend it
    │   ├── InvalidRequestError      a field of a request is wrong          400
    │   │   └── ContextLengthError   prompt plus output exceed the context  400
    │   ├── AuthenticationError      no key, or an unknown one              401
    │   ├── NotFoundError            no such route or object                404
    │   │   └── ModelNotFoundError   no such model or adapter               404
    │   ├── RequestTooLargeError     a body or a list over its limit        413
    │   ├── ConfigError              an option, a spec string or a file of options
    │   │   └── UnknownNameError     a name that no catalogue holds
    │   ├── ModelFileError           a model file is truncated, corrupt or hostile
    │   ├── UnsupportedModelError    a sound model that nonet cannot run
    │   └── DownloadError            a model could not be fetched
    ├── OverloadedError              full; try again after `retry_after_s`  429
    │   └── RateLimitError           the key has used what it may           429
    ├── UnavailableError             draining or restarting                 503
    │   └── StoreError               the database cannot be read or written 503
    └── EngineDeadError              the engine process is gone             503

User mistakes say what was given, what is allowed and what to do. HTTP statuses are assigned in one place,
`nonet.server.errors`; the numbers above are a guide.
"""

from __future__ import annotations

__all__ = [
    "AuthenticationError",
    "ConfigError",
    "ContextLengthError",
    "DownloadError",
    "EngineDeadError",
    "InvalidRequestError",
    "ModelFileError",
    "ModelNotFoundError",
    "NonetError",
    "NotFoundError",
    "OverloadedError",
    "RateLimitError",
    "RequestTooLargeError",
    "StoreError",
    "UnavailableError",
    "UnknownNameError",
    "UnsupportedModelError",
    "UserError",
]


class NonetError(Exception):
    """Root of the tree."""


class UserError(NonetError):
    """The caller gave something that cannot be done; the message says what to change."""


class InvalidRequestError(UserError):
    """One field of a request is wrong. `param` names it as the client spelled it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(InvalidRequestError):
    """The prompt and the asked-for output do not fit in the model's context."""


class AuthenticationError(UserError):
    """No API key was given, or one that is not known."""


class NotFoundError(UserError):
    """The named route or stored object does not exist."""


class ModelNotFoundError(NotFoundError):
    """No model or adapter of that name is served here."""


class RequestTooLargeError(UserError):
    """A body, a header or a list is over its limit."""


class ConfigError(UserError):
    """An option, a spec string or a configuration file is wrong."""


class UnknownNameError(ConfigError):
    """A name that the catalogue asked does not hold."""


class ModelFileError(UserError):
    """A model file is truncated, corrupt or hostile."""


class UnsupportedModelError(UserError):
    """The model file is sound, but nonet has no code for what it asks."""


class DownloadError(UserError):
    """A model could not be fetched."""


class OverloadedError(NonetError):
    """No room for the request now."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimitError(OverloadedError):
    """The API key has used up its requests, tokens or money for now."""


class UnavailableError(NonetError):
    """The server is draining, or its engine is starting or being restarted."""


class StoreError(UnavailableError):
    """The server's database could not be read or written; nothing of what was asked is kept."""


class EngineDeadError(NonetError):
    """The engine process ended; requests in flight are lost."""
