#!/bin/bash
# One run of a sweep, selected by the array index; submitted by jobs/sweep.sh. To repeat a single run:
#   sbatch --array=7 jobs/member.sh configs/fig5.yaml data.root=/data
#SBATCH --job-name=genfl-member
#SBATCH --nodes=1
#SBATCH --ntasks=4              # ranks per run
#SBATCH --cpus-per-task=1
#SBATCH --time=04:00:00         # per run; a run that needs more is requeued
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%A_%a.log

source jobs/common.sh
ranks python -m genfl_mpi "$@" --member "$SLURM_ARRAY_TASK_ID"
