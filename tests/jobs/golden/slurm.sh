#!/bin/bash
#SBATCH --job-name=0216syn_explain
#SBATCH --partition=a100
#SBATCH --nodes=1 --ntasks=1 --cpus-per-task=16
#SBATCH --gpus-per-node=4
#SBATCH --mem=238G
#SBATCH --time=12:00:00
#SBATCH --output=/FOLDER/0216syn_explain-%j.txt --open-mode=append
#SBATCH --requeue --signal=B:USR1@90

cd /FOLDER || exit
export OMP_NUM_THREADS=16
python3 seq2seq.py --model_init_name flan-t5-xxl --training_run_name 0216syn_explain --gradient_accumulation_steps 2 --train_batch_size 8 --max_steps 6001 --data synthetic_explain --eval_steps 2000 --temperature 0.001 --n_samples 1 &
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
    scontrol requeue "$SLURM_JOB_ID" && { sleep 60; exit 75; }  # Slurm ends this shell within that time
fi
exit "$code"
