"""Training of one stage of one variant: from shards and feature files to a checkpoint.

In reading order:

    recipes        how each stage of each variant is trained, as data
    run_config     one run: the JSON file that says where things are and how it deviates
    train          the entry that torchrun starts, and its exit status
    loop           the story of one optimizer step
    state          what a run counts
    data/          shards -> micro-batches -> packs on the device
    optimizer      which parameters are tuned, at which rate
    adapters       low-rank adapters of some modules, by peft
    host_optimizer AdamW with its moments on the host
    ranks          which rank this is, and how ranks meet
    parallel       the model laid over them
    lockstep       whatever the samples are, all parts of the model run
    sharded        the part of a tensor that a rank has
    flops          what a sample costs
    footprint      bytes that a run needs, by arithmetic
    rates          measured rates, and cards
    memory_plan    what is done so that it fits, chosen by speed
    device         name, free memory and utilisation of a device
    host_memory    free memory of the machine
    checkpoint     state of a running stage, written in the background
    loading        what a run starts from
    export         what leaves a run
    metrics        records of steps
    reporting      lines for the log and for the Dagster run that owns this one
    run_identity   what makes two runs the same, and the result of a finished one
    supervise      ends every process of a training with its owner
    progress       progress of long work as lines in a log
    formats/       what the pipeline writes and training reads
"""
