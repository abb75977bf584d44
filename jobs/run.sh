#!/bin/bash
# A run, or the runs of a sweep one after another, on the cores of one node:
#   sbatch jobs/run.sh configs/cifar10_pool.yaml data.root=/data rounds=50
# Without arguments: the default run, three methods on handwritten digits.
#SBATCH --job-name=genfl
#SBATCH --nodes=1
#SBATCH --ntasks=4              # ranks
#SBATCH --cpus-per-task=1       # threads per rank
#SBATCH --time=01:00:00
#SBATCH --signal=B:USR1@300     # seconds before the time limit: more than a client trains
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source jobs/common.sh
ranks python -m genfl_mpi "$@"
