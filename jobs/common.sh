# Sourced by every job file. Adapt it once to your cluster.
# Each job file requests cores, GPUs and time at its head; options of sbatch override these requests.

# Your software: modules, and the virtual environment.
# module load python openmpi
if [ -f .venv/bin/activate ]; then source .venv/bin/activate; fi

# The launcher: srun if your MPI library supports Slurm, else mpirun. docs/clusters.md describes how to find out.
launcher=${launcher:-srun}

# Account and partition, for all jobs that this shell submits.
# export SBATCH_ACCOUNT=... SBATCH_PARTITION=...

# Nothing to change below.

export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}  # newer versions of srun do not take it from the job
# Open MPI's mpirun would bind the first rank of every job on a node to the same core.
export OMPI_MCA_hwloc_base_binding_policy=none PRTE_MCA_hwloc_default_binding_policy=none

# ranks [OPTIONS] COMMAND: start COMMAND on every rank of the job, and end the job if it fails.
# Before the time limit Slurm sends USR1 to the job file (`#SBATCH --signal`), which forwards it. The run writes a
# checkpoint and leaves with status 75. Then the job file requeues the job, which continues the run.
ranks() {
  local process status=0
  $launcher "$@" &
  process=$!
  trap 'time_is_over=yes; kill -USR1 $process' USR1
  wait $process || true
  while kill -0 $process 2>/dev/null; do wait $process || true; done  # the signal ends the wait, but not the process
  wait $process || status=$?
  trap - USR1
  # 75: left with a checkpoint; 138: killed by the signal before its handler was installed.
  if [ "$time_is_over" = yes ] && { [ $status = 75 ] || [ $status = 138 ]; }; then scontrol requeue "$SLURM_JOB_ID"; fi
  if [ $status != 0 ]; then exit $status; fi
}
