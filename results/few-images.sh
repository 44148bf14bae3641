#!/usr/bin/env bash
# Accuracy of every recipe on scikit-learn's 1,437 training digits, three seeds each:
# bash results/few-images.sh > results/few-images.txt
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "# $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores, one thread"
echo "# Python $(python -c 'import platform, torch; print(platform.python_version(), "torch", torch.__version__)')"
for recipe in default fast one-epoch best tiny; do
    for seed in 0 1 2; do
        python train.py --recipe $recipe --dataset digits --target none --threads 1 --no-plots --seed $seed \
            --out "$folder/$recipe-$seed" > "$folder/log"
        echo "$recipe, seed $seed: $(grep -i 'final test accuracy' "$folder/log")"
    done
done
