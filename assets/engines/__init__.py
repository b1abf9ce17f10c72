"""Where the work of a step runs: in this process, or as jobs of a Slurm cluster.

In reading order:

    call        a plain function, here or in a job
    jobs        the jobs of one step, one after the other, until the work is done
    telling     what people are told of them
    script      the batch script
    slurm       what is asked of Slurm
    messages    Dagster Pipes over a file, for a job that may be found again
    plain       what a function takes and returns, as JSON
    worker      the other side: what a job of `call` runs
"""
