#!/bin/bash
#SBATCH --job-name={job_name}
#SBATCH --array={array}
#SBATCH --partition={partition?}
#SBATCH --account={account?}
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task={cpus}
#SBATCH --gpus-per-node={gpus?}
#SBATCH --mem={memory?}
#SBATCH --time={timeout?}
#SBATCH {options?}
#SBATCH --output={log} --open-mode=append
#SBATCH --requeue --signal=B:USR1@{warning_s}

# One task a job: the job's own script in its folder, its output appended to the log there.
folders=({folders})
folder=${folders[$SLURM_ARRAY_TASK_ID]}
rm -f "$folder/ended"
attempt=$(( ${SLURM_RESTART_COUNT:-0} + 1 ))
cd {directory} || exit
export OMP_NUM_THREADS={cpus}
echo "=== $(date +%FT%T%z) attempt $attempt, task $SLURM_ARRAY_TASK_ID on $(hostname)" >> "$folder/log.txt"
bash "$folder/job.sh" >> "$folder/log.txt" 2>&1 &
program=$!

# Slurm warns this shell alone (B:), so the warning is passed on; the program then writes a checkpoint and ends with 75.
trap 'heard=yes; kill -USR1 "$program" 2>/dev/null' USR1
trap 'heard=yes; cancelled=cancelled; kill -TERM "$program" 2>/dev/null' TERM
code=127
heard=yes
while [ -n "$heard" ]; do  # a trapped signal ends a wait early; what bash knows no more is -1 or 127
    heard=
    wait "$program"
    ended=$?
    [ "$ended" -lt 0 ] || [ "$ended" -eq 127 ] || code=$ended
done

# The same task again, but not one that somebody cancelled: the program may end before this shell hears of it.
[ ! -e "$folder/cancelled" ] || cancelled=cancelled
if [ "$code" -eq 75 ] && [ -z "$cancelled" ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 100 ]; then
    scontrol requeue "$SLURM_JOB_ID" && {{ sleep 60; exit 75; }}  # Slurm ends this shell within that time
fi
# How it ended, for `workflow jobs status`: Slurm forgets after some minutes.
echo "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID} $code $attempt $(date +%FT%T%z) ${cancelled:-ended}" > "$folder/.tmp-ended" && mv "$folder/.tmp-ended" "$folder/ended"
exit "$code"
