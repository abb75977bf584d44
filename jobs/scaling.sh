#!/bin/bash
# Measure how a run scales on your machine: several runs in one allocation, then a table and a figure.
#   sbatch jobs/scaling.sh strong     the same work on more ranks
#   sbatch jobs/scaling.sh weak       the same clients per rank, on more ranks
#   sbatch jobs/scaling.sh clients    more clients, the same cohort, all ranks
# Settings may follow, for example of your model or data set.
#SBATCH --job-name=genfl-scaling
#SBATCH --nodes=1               # if more, identical nodes; not shared with other jobs
#SBATCH --exclusive
#SBATCH --ntasks=32
#SBATCH --cpus-per-task=1
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log

source jobs/common.sh
study=$1; shift
output=${output:-results/scaling-$study}
all=$SLURM_NTASKS
# Clients of equal size, drawn with replacement, so that their number is not limited. Fixed threads, so that runs are
# comparable.
settings="method=fedavg rounds=5 partition.scheme=iid partition.replacement=true partition.samples=250"
settings="$settings runtime.threads=$SLURM_CPUS_PER_TASK"

if [ "$study" = clients ]; then
  for clients in 100 1000 10000 100000; do
    ranks -n "$all" python -m genfl_mpi $settings cohort=$((2 * all)) clients=$clients output="$output/$clients" "$@"
  done
else
  for ((n = 1; n <= all; n *= 2)); do
    if [ "$study" = weak ]; then cohort=$((4 * n)); else cohort=$((4 * all)); fi
    ranks -n $n python -m genfl_mpi $settings cohort=$cohort clients=$((4 * cohort)) output="$output/$n" "$@"
  done
fi
python -m genfl_mpi scaling "$output"/*
