"""From videos to SigLIP features.

In reading order:

    assets         the asset and its checks
    extract        which videos of a part need features, and having them made
    options        what decides how an extraction runs, and when its results still hold
    coordinator    the loop that passes messages between the processes
    video_queue    the videos that wait for a decoder
    decoder_pool   supervises the decoding processes
    encoder_pool   supervises the encoding processes
    jobs           what passes through: a video, its job, its outcome
    quarantine     the record of a video that gave no features
    frame_strip    a picture of what the encoder saw
    report         what an extraction tells of itself
    checks         whether the features of a part are sound
    workers/       the processes themselves
"""
