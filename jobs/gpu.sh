#!/bin/bash
# One GPU per rank; rank 0, which also generates images, has the first:
#   sbatch jobs/gpu.sh configs/cifar10.yaml data.root=/data
# Every rank sees all GPUs of the job on its node, and takes one by its rank there. So do not use --gpus-per-task or
# --gpu-bind.
#SBATCH --job-name=genfl-gpu
#SBATCH --nodes=1               # for more ranks raise this alone
#SBATCH --ntasks-per-node=4     # one per GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8       # a GPU's share of the node's cores
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source jobs/common.sh
ranks python -m genfl_mpi "$@"
