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
trap 'heard=yes; kill -USR1 "$program" 2>/dev/null' USR1
trap 'heard=yes; cancelled=yes; kill -TERM "$program" 2>/dev/null' TERM
code=127
heard=yes
while [ -n "$heard" ]; do  # a trapped signal ends a wait early; what bash knows no more is -1 or 127
    heard=
    wait "$program"
    ended=$?
    [ "$ended" -lt 0 ] || [ "$ended" -eq 127 ] || code=$ended
done

# The same job again, with the same log; but not one that somebody cancelled.
if [ "$code" -eq 75 ] && [ -z "$cancelled" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    scontrol requeue "$SLURM_JOB_ID" && {{ sleep 60; exit 75; }}  # Slurm ends this shell within that time
fi
exit "$code"
