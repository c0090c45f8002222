#!/bin/bash
# 0216syn_explain: the same command continues a run that was stopped (exit code 75).
cd /FOLDER || exit
exec python3 seq2seq.py --model_init_name flan-t5-xxl --training_run_name 0216syn_explain --gradient_accumulation_steps 2 --train_batch_size 8 --max_steps 6001 --data synthetic_explain --eval_steps 2000 --temperature 0.001 --n_samples 1
