# What every job file begins with (`source jobs/common.sh`): adapt it once to your cluster, and all of them follow.
# Cores, GPUs and time are asked for at the head of each job file, or on sbatch's command line, which wins.

# Your software: modules, and the virtual environment.
# module load python openmpi
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

# What starts the ranks: srun where your MPI library understands Slurm, else mpirun. docs/clusters.md says how to find out.
launcher=${launcher:-srun}

# Account and partition, for all jobs that this shell submits.
# export SBATCH_ACCOUNT=... SBATCH_PARTITION=...

# Nothing to change below.

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # srun no longer takes it from the job
# Open MPI's mpirun would bind the first rank of every job on a node to the same core.
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none

# ranks [OPTIONS] COMMAND: start COMMAND on every rank of the job, and end the job if it fails.
# Before the time is over Slurm sends USR1 to the job file (`#SBATCH --signal`). It is passed on; the run writes a checkpoint and
# leaves with status 75; the job goes back into the queue; and the same command continues, until the run is finished.
ranks() {
  local process status=0
  $launcher "$@" &
  process=$!
  trap 'time_is_over=yes; kill -USR1 $process' USR1
  wait $process || true
  while kill -0 $process 2>/dev/null; do wait $process || true; done  # the signal ends a wait, but not the process
  wait $process || status=$?
  trap - USR1
  # 75: left with a checkpoint; 138: ended by the signal, before it could listen to it.
  if [ "$time_is_over" = yes ] && { [ $status = 75 ] || [ $status = 138 ]; }; then scontrol requeue "$SLURM_JOB_ID"; fi
  if [ $status != 0 ]; then exit $status; fi
}
