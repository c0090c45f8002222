#!/bin/bash
#SBATCH --job-name={job_name}
#SBATCH --partition={partition?}
#SBATCH --account={account?}
#SBATCH --nodes={nodes} --ntasks-per-node={tasks} --cpus-per-task={cpus_per_task}
#SBATCH --gpus-per-node={gpus?}
#SBATCH --mem={memory?}
#SBATCH --time={timeout?}
#SBATCH {options?}
#SBATCH --output={log} --open-mode=append
#SBATCH --requeue --signal=B:USR1@{warning_s}

cd {directory} || exit
export OMP_NUM_THREADS={cpus_per_task}
# A rank a task: the ranks take their places from Slurm's variables, and each the GPU of its number on its node.
srun --kill-on-bad-exit=0 {program} {args} &
program=$!

# Slurm warns this shell alone (B:); scancel passes the warning on to every rank of the job's steps, not to this shell.
trap 'heard=yes; scancel --signal=USR1 "$SLURM_JOB_ID"' USR1
trap 'heard=yes; cancelled=yes' TERM
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
