#!/bin/bash
# One run of a sweep, the one that the array's index names; jobs/sweep.sh submits it. A single one again:
#   sbatch --array=7 jobs/member.sh configs/fig5.yaml data.root=/data
#SBATCH --job-name=genfl-member
#SBATCH --nodes=1
#SBATCH --ntasks=4              # ranks of each run
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00         # of each run, which goes back into the queue when it needs more
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

source jobs/common.sh
ranks python -m genfl_mpi "$@" --member "$SLURM_ARRAY_TASK_ID"
