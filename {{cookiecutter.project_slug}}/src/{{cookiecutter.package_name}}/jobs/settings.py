"""The settings of the job queue, beside those of the service."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..settings import Settings, seconds, setting, whole

PACKAGE = __package__.partition(".")[0]


def redis_url(text: str) -> str:
    try:
        url = urlsplit(text)
        database = url.path.removeprefix("/") or "0"
        good = url.scheme in ("redis", "rediss") and url.hostname and url.port != 0
    except ValueError:  # a port that is none
        good = False
    if not good or not database.isdigit() or url.query or url.fragment:
        raise ValueError("give redis://host:port/database, or rediss:// for TLS")
    if url.password:
        raise ValueError("give the password in REDIS_PASSWORD or REDIS_PASSWORD_FILE, not here")
    return text


def queue_name(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text):
        raise ValueError("give 1 to 64 letters, digits and . _ -")
    return text


def secret_file(text: str) -> Path:
    try:
        if Path(text).read_text().strip():
            return Path(text)
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    raise ValueError("the file is empty; put the password into it")


@dataclass(frozen=True, kw_only=True)
class JobSettings(Settings):
    """All settings of the service, those of the job queue among them."""

    redis_url: str = setting("redis://localhost:6379/0", redis_url)
    redis_password: str | None = setting(None, str)
    redis_password_file: Path | None = setting(None, secret_file)  # noqa: RUF009
    redis_timeout: float = setting(1.0, seconds(0.05, 60))

    jobs_queue: str = setting(PACKAGE, queue_name)
    jobs_timeout: float = setting(300.0, seconds(0.1))
    jobs_tries: int = setting(5, whole(1, 1000))
    jobs_retry_delay: float = setting(5.0, seconds(0))
    jobs_lost_after: float = setting(30.0, seconds(1))
    jobs_result_ttl: int = setting(86_400, whole(1, 10**8))

    def password(self) -> str | None:
        """The password of Redis as it is now: a mounted Secret may change."""
        if self.redis_password_file is not None:
            return self.redis_password_file.read_text().strip()
        return self.redis_password

    def as_json(self) -> dict[str, Any]:
        hidden = {"REDIS_PASSWORD": "(set)"} if self.redis_password else {}
        return {**super().as_json(), **hidden}
