"""Settings of what runs by itself, and of who is told about it."""

from __future__ import annotations

from typing import Literal
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from model.configuration import Section


class Automation(Section):
    """What runs by itself from the first start; later the UI's switches (Automation) decide."""

    data: bool = Field(default=True, description="data assets follow new data, part by part")
    training: bool = Field(default=False, description="stage 3 follows changed contents, nightly")
    time_zone: str = Field(
        default="UTC", description="of the times below, as the IANA names it: Europe/Berlin"
    )
    training_at: str = Field(
        default="0 2 * * *", description="cron: when a night's training begins"
    )
    downloads_at: str = Field(
        default="0 20 * * *", description="cron: when videos that are missing are asked for again"
    )
    integrity_at: str = Field(
        default="0 23 * * *", description="cron: when a night's reading of what was made begins"
    )
    retries: int = Field(
        default=3,
        ge=0,
        description="how often an automatic run that failed by the machine is tried again, for the "
        "same inputs",
    )
    retry_after_s: float = Field(
        default=600, ge=0, description="seconds before the first of these; each next waits twice"
    )
    look_within_h: float = Field(
        default=24,
        ge=1,
        description="hours after which the UI shows outside data as overdue, when nobody was able "
        "to look at it",
    )

    @field_validator("time_zone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ValueError, OSError, KeyError) as error:
            raise ValueError(
                f"{value!r} is no time zone; names are like UTC or Europe/Berlin"
            ) from error
        return value

    @field_validator("training_at", "downloads_at", "integrity_at")
    @classmethod
    def _five_fields(cls, value: str) -> str:
        # Dagster's own test, so that what passes here is what it takes. Imported here, because most
        # of the command line needs no Dagster.
        from dagster._utils.schedules import is_valid_cron_schedule

        if len(value.split()) != 5 or not is_valid_cron_schedule(value):
            raise ValueError(
                f"{value!r} is not a cron line of five fields, as in '0 2 * * *' (at 02:00) or "
                "'30 1 * * 6' (Saturdays at 01:30)"
            )
        return value


Event = Literal["run_failed", "retries_used_up", "held", "stage_finished"]


class Notices(Section):
    """Who is told what. The addresses hold secrets, so they stand in the environment."""

    urls_from: str = Field(
        default="HOURLLAVA_NOTICES",
        pattern=r"[A-Za-z_][A-Za-z0-9_]*",
        description="environment variable with addresses as Apprise reads them, separated by "
        "spaces: slack://..., mailto://..., jsons://host/path for a plain webhook",
    )
    events: list[Event] = Field(
        default=["run_failed", "retries_used_up", "held", "stage_finished"],
        description="a run failed; an automatic run failed for the last time; a check holds what "
        "is made from its product; a stage is trained",
    )
    timeout_s: float = Field(
        default=30, gt=0, le=45, description="seconds for one notice, to all addresses together"
    )
