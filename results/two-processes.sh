#!/usr/bin/env bash
# Two processes of one thread beside one process of two threads, in turn, seeds 16200 to 16204: results/two-processes.txt
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
line() { grep -E "^(Final|Training)" "$folder/$1/log.txt" | tr '\n' ' ' | sed "s/^/$1: /"; echo; }
grep -m 1 "model name" /proc/cpuinfo
python -c "import torch; print('torch', torch.__version__)"
for seed in 16200 16201 16202 16203 16204; do
  flags="--target none --no-plots --seed $seed"
  python train.py $flags --threads 2 --out "$folder/one-$seed" > /dev/null
  line "one-$seed"
  torchrun --standalone --nproc-per-node 2 train.py $flags --out "$folder/two-$seed" > /dev/null 2>&1
  line "two-$seed"
done
