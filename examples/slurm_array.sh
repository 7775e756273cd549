#!/bin/bash
# The same script as an array job: each element is an instance, and they share out the evaluations of one
# database. Submit it with `sbatch examples/slurm_array.sh`, again if some are left when the time is over.
#SBATCH --job-name=speval
#SBATCH --array=1-20
#SBATCH --cpus-per-task=2
#SBATCH --time=04:00:00
#SBATCH --signal=TERM@60
#SBATCH --requeue
# A minute before the time limit, and at preemption, each instance gets SIGTERM: it releases the evaluation
# that it has, for another one. (`--signal=TERM@60`, without `B:`, goes to what `srun` or `exec` started.)

export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"
exec ${SLURM_JOB_ID:+srun} "${PYTHON:-python3}" "${1:-examples/05_local_processes.py}"
