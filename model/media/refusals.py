"""Why a file cannot be used as a video. Nothing is imported here: light processes ask, too."""

REASONS = {
    "not_media": "not a video container",
    "hostile_format": "a playlist or another format that makes the reader open other files",
    "unsupported_container": "a container that is not among those that are read",
    "unreadable": "a container that is empty, cut off or broken",
    "no_video_stream": "no moving picture in it",
    "unsupported_codec": "no decoder for its video, or none that may be trusted with it",
    "no_frames": "a video stream without frames",
    "no_frame_decodes": "frames, but not one of them decodes",
    "too_large": "more pixels than allowed",
    "too_corrupt": "too many frames are missing",
    "decoder_disagrees": "the decoder sees other frames than the file has",
}


class MediaError(ValueError):
    """A file that cannot be used as a video. `reason` is one of `REASONS`, for counting; the
    message is for people.
    """

    def __init__(self, reason: str, path: str, detail: str) -> None:
        assert reason in REASONS, reason
        # All three, so that it survives pickling between processes.
        super().__init__(reason, path, detail)
        self.reason, self.path, self.detail = reason, path, detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason} ({self.detail})"
