#!/bin/bash
# Generate all images of a configuration into the bank, on all ranks; then train.
#   sbatch jobs/bank.sh configs/fig5.yaml data.root=/data
# Use it if several runs share the images, or if one rank generates too slowly for the others.
#SBATCH --job-name=genfl-bank
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source jobs/common.sh
ranks python -m genfl_mpi generate "$@"
ranks python -m genfl_mpi "$@"
