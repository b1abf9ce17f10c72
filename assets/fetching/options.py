"""How fetching behaves: the section `download` of the deployment's settings."""

from __future__ import annotations

from pydantic import Field

from model.configuration import Section

COOKIES_VARIABLE = "YTDLP_COOKIES"  # names a Netscape cookie file


class Download(Section):
    """How politely and how stubbornly videos are fetched."""

    workers: int = Field(default=4, ge=1, description="videos that are fetched at a time")
    min_interval_s: float = Field(
        default=5.0, ge=0, description="least time between two requests to one host"
    )
    connections: int = Field(
        default=4,
        ge=1,
        le=16,
        description="to one host for one large file, where the server allows ranges",
    )
    attempts: int = Field(
        default=5, ge=1, description="tries of one video before it is given up as exhausted"
    )
    backoff_s: float = Field(
        default=30.0, ge=0, description="first wait after a passing failure; doubles, jittered"
    )
    max_bytes: int = Field(default=8 << 30, description="largest video accepted")
    max_duration_s: float = Field(default=3900.0, description="longest video accepted")
    timeout_s: float = Field(
        default=30.0,
        gt=0,
        description="longest silence of a server; the hub's: HF_HUB_DOWNLOAD_TIMEOUT",
    )
    hub_backoff_s: float = Field(
        default=2.0, ge=0, description="as backoff_s, for the hub's and other plain files"
    )
    cooldown_s: float = Field(
        default=60.0, ge=0, description="pause of a whole host after it said: too many requests"
    )
    breaker: int = Field(
        default=10,
        ge=1,
        description="failures in a row, whatever their wording, after which a run asks a host for "
        "nothing more; from half as many on it rests longer each time",
    )
    retry: list[str] = Field(
        default=[], description="permanent reasons to try again, e.g. geo after a proxy was set"
    )
    min_free_bytes: int = Field(
        default=20 << 30, description="downloads stop when the disk has less free than this"
    )
    coverage_threshold: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="least share of expected videos present; below 1, a single missing one is "
        "no fault of a small set",
    )
    verify_tolerance_s: float = Field(
        default=2.0, description="difference allowed between real and stated duration"
    )
