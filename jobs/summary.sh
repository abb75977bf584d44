#!/bin/bash
# Table and figure of the existing runs of a sweep; submitted by jobs/sweep.sh after the array.
#   sbatch jobs/summary.sh configs/fig5.yaml data.root=/data
#SBATCH --job-name=genfl-summary
#SBATCH --ntasks=1
#SBATCH --time=00:10:00
#SBATCH --output=%x-%j.log

source jobs/common.sh
results=$(python -m genfl_mpi --members "$@")
python -m genfl_mpi summary $results
