#!/bin/bash
# A sweep as a job array, an index for each run, and then its table and figure. Not submitted, but run where you submit:
#   bash jobs/sweep.sh configs/fig5.yaml data.root=/data
# Run again, it skips what is finished, continues what was cut off, and draws the figure anew.
set -e
source jobs/common.sh
runs=$(python -m genfl_mpi --members "$@")  # a line each
last=$(($(wc -l <<<"$runs") - 1))
array=$(sbatch --parsable --array="0-$last%20" jobs/member.sh "$@")  # at most 20 at a time
sbatch --dependency=afterany:"$array" jobs/summary.sh "$@"
