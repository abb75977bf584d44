#!/bin/bash
# A sweep in one large allocation: the ranks form groups, and each group takes the next run that is left.
#   sbatch jobs/allocation.sh configs/fig5.yaml data.root=/data
# One wait in the queue instead of one for each run; jobs/sweep.sh starts sooner where the cluster is full.
#SBATCH --job-name=genfl-allocation
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=32
#SBATCH --cpus-per-task=2
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source jobs/common.sh
ranks python -m genfl_mpi "$@"
