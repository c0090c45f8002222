#!/bin/bash
#SBATCH --job-name={job_name}
#SBATCH --partition={partition?}
#SBATCH --account={account?}
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task={cpus}
#SBATCH --gpus-per-node={gpus?}
#SBATCH --mem={memory?}
#SBATCH --time={timeout?}
#SBATCH {options?}
#SBATCH --output={log} --open-mode=append
#SBATCH --requeue --signal=B:USR1@{warning_s}

cd {directory} || exit
export OMP_NUM_THREADS={cpus}
{program} {args} &
program=$!

# Slurm warns this shell alone (B:), so the warning is passed on; the program then writes a checkpoint and ends with 75.
trap 'kill -USR1 "$program" 2>/dev/null' USR1
trap 'cancelled=yes; kill -TERM "$program" 2>/dev/null' TERM
while kill -0 "$program" 2>/dev/null; do wait "$program"; done  # a trapped signal ends a wait early
wait "$program"
code=$?

# The same job again, with the same log; but not one that somebody cancelled.
if [ "$code" -eq 75 ] && [ -z "$cancelled" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    scontrol requeue "$SLURM_JOB_ID" && {{ sleep 60; exit 75; }}  # Slurm ends this shell within that time
fi
exit "$code"
