#!/bin/bash
# A sweep as a job array, one index per run, then its table and figure. Run it on the login node; it submits both:
#   bash jobs/sweep.sh configs/fig5.yaml data.root=/data
# When run again, it skips finished runs, continues interrupted ones, and redraws the figure.
set -e
source jobs/common.sh
runs=$(python -m genfl_mpi --members "$@")  # one line per run
last=$(($(wc -l <<<"$runs") - 1))
array=$(sbatch --parsable --array="0-$last%20" jobs/member.sh "$@")  # at most 20 at a time
sbatch --dependency=afterany:"$array" jobs/summary.sh "$@"
