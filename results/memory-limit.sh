#!/usr/bin/env bash
# One epoch over 1,440,000 images, a file of 1.1 GB, with and without a memory limit of 1 GB, which counts the pages of
# mapped files too. Needs root and control groups (version 1). From the repository's folder:
# bash results/memory-limit.sh > results/memory-limit.txt
folder=$(mktemp -d)
group=/sys/fs/cgroup/memory/memory-limit
python -c "
from pathlib import Path
from experiment.datasets import load_mnist
from experiment.scaling import repeat_images
repeat_images(Path('$folder'), load_mnist(), 1_440_000)"
mkdir "$group"
echo 1000000000 > "$group/memory.limit_in_bytes"
trap 'rm -rf "$folder"; rmdir "$group"' EXIT
grep -m 1 "model name" /proc/cpuinfo
train="python train.py --recipe one-epoch --target none --threads 2 --no-plots --data-dir $folder"
echo "no limit: $($train --out "$folder/free" | grep "Training time")"
sync; echo 3 > /proc/sys/vm/drop_caches  # a cached page counts for whoever read it first
limited="echo \$\$ > $group/cgroup.procs; exec timeout 280 $train --out $folder/limited"
echo "limit of 1 GB: $(sh -c "$limited" | grep -E "Training time|Interrupted")"
