#!/bin/bash
# A run on the cores of several nodes:
#   sbatch --nodes=8 jobs/nodes.sh configs/cifar100_pool.yaml data.root=/data clients=10000 cohort=400
# data.root, output and generation.bank must be on a file system that all nodes share. A node holds the data set in
# memory once, for all its ranks.
#SBATCH --job-name=genfl-nodes
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=32    # ranks per node: its cores ...
#SBATCH --cpus-per-task=2       # ... divided by the threads per rank
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source jobs/common.sh
ranks python -m genfl_mpi "$@"
