#!/bin/bash
# Several ranks per GPU, for models that are too small to fill a GPU:
#   sbatch jobs/shared_gpu.sh configs/cifar10_pool.yaml data.root=/data
# With several GPUs on its node, rank 0 has the first alone; the other ranks take the others in turn.
#SBATCH --job-name=genfl-shared
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=13    # rank 0, and four per other GPU
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=2
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

source jobs/common.sh

# NVIDIA's Multi-Process Service lets ranks use a GPU concurrently instead of in turn.
if command -v nvidia-cuda-mps-control >/dev/null; then
  export CUDA_MPS_PIPE_DIRECTORY=/tmp/mps-$SLURM_JOB_ID CUDA_MPS_LOG_DIRECTORY=/tmp/mps-$SLURM_JOB_ID
  nvidia-cuda-mps-control -d
  trap 'echo quit | nvidia-cuda-mps-control' EXIT
fi
ranks python -m genfl_mpi "$@"
