"""The processes of an extraction, and what connects them. Nothing here knows of the storage root's
layout or of Dagster.

In reading order:

    processes      the coordinator's handles on its child processes
    fork_server    the process that decoders are forked from
    decode         what a decoder does
    backends       the ways to decode a video
    nvdec          one more of them, on a GPU
    encode         what an encoder does
    tower          its batches
    frame_encoder  SigLIP arranged for throughput
    frame_buffer   memory that all of them share
    connection     messages between them
"""
