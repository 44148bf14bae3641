#!/usr/bin/env bash
# Seconds of `import torch`, of a whole run of `fast` with its pictures, and of its training alone, in turn, six times:
# (bash results/startup.sh; bash results/startup.sh CHECKOUT) > results/startup.txt, CHECKOUT being one of cdc43bc
cd "${1:-$(dirname "$0")/..}"
echo "# commit $(git rev-parse --short HEAD)"
export TIMEFORMAT=%R
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "# $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores"
echo "# Python $(python -c 'import platform, torch; print(platform.python_version(), "torch", torch.__version__)')"
printf '%8s %8s %8s %24s\n' torch run training "(run - training) / torch"
for i in 1 2 3 4 5 6; do
    torch=$({ time python -c "import torch"; } 2>&1)
    run=$({ time python train.py --recipe fast --target none --threads 2 --out "$folder/$i" > "$folder/log" 2>&1; } 2>&1)
    training=$(python -c "import json; print(json.load(open('$folder/$i/metrics.json'))['train_seconds'])")
    python -c "print(f'{$torch:8.2f} {$run:8.2f} {$training:8.2f} {($run - $training) / $torch:24.2f}')"
done
