#!/usr/bin/env bash
# Training time of `default` now and before selection (commit 4dadea5), in turn, two threads, seven pairs:
# bash results/default-time.sh > results/default-time.txt
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
data=$(cd ../shared/mnist && pwd)
git worktree add -q "$folder/before" 4dadea5
trap 'git worktree remove --force "$folder/before"; rm -rf "$folder"' EXIT
time_of() { (cd "$2" && python train.py --target none --threads 2 --seed 16000 --data-dir "$data" --out "$folder/run" | grep "Training time" | sed "s/^/$1: /"); rm -rf "$folder/run"; }
grep -m 1 "model name" /proc/cpuinfo
python -c "import torch; print('torch', torch.__version__)"
for pair in 1 2 3 4 5 6 7; do
  time_of now .
  time_of before "$folder/before"
done
