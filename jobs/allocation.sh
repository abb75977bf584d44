#!/bin/bash
# A sweep in one large allocation: the ranks form groups, and each group takes the next remaining run.
#   sbatch jobs/allocation.sh configs/fig5.yaml data.root=/data
# The sweep waits in the queue only once. On a full cluster the smaller jobs of jobs/sweep.sh start sooner.
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
