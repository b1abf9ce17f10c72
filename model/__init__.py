"""Hour-LLaVA in plain PyTorch. To be read in this order:

    config         the numbers that describe a model, and the table of its variants
    inputs         one sample as the model takes it: token ids, labels, visuals
    hour_llava     the whole model, from samples to the loss
    vision         the vision encoder (SigLIP), pooling, the projector
    anyres         one image as a grid of tiles: its geometry
    memory         the memory of a visual, and where each of its tokens stands
    forgetting     which tokens of a memory stay as queries
    memaug         the queries look the rest up in the memory
    packing        text and visual tokens of several samples, joined by index tables
    attention      the one place that chooses an attention kernel
    loss           cross-entropy that never holds all logits
    generate       greedy decoding
    hf             the same model for transformers: from_pretrained, generate
    hf_processor   its processor: chat messages with pictures and videos to a batch
    hf_*           what these two are made of: configuration, settings of generate, requests
    import_name/   the package `hour_llava`, whose import makes transformers know both

What comes before the model:

    conversation   messages to token ids and labels
    images         images from anywhere to pixels
    media/         video files to frames
    processor      all of it: messages, images and videos to a sample
    initialise     weights of parts that no checkpoint provides
    weights/       checkpoints: reading, writing, converting, the tiny model

Used by every room: `configuration` reads typed settings, `atomic` publishes files and folders.

A tensor's name ends with its shape: `memory_ND` is [N, D]. Each file's docstring has the letters.
"""
