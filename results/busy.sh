#!/bin/bash
# Wall seconds of each command on an idle machine and beside one busy process for each of its processors.
# From the repository's folder: bash results/busy.sh > results/busy.txt
export TIMEFORMAT=%0R
folder=$(mktemp -d)
echo "# $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2 | xargs), $(nproc) cores"
echo "# Python $(python -c 'import platform, torch; print(platform.python_version(), "torch", torch.__version__)')"

measure() {  # NAME COMMAND...: a row of the table; {} is a new folder
    local name=$1 idle busy
    shift
    idle=$({ time "${@//\{\}/$folder/idle-$RANDOM}" > "$folder/log" 2>&1 || printf 'ended by code %s after ' $? >&2; } 2>&1)
    for _ in $(seq "$(nproc)"); do (while :; do :; done) & done
    busy=$({ time "${@//\{\}/$folder/busy-$RANDOM}" > "$folder/log" 2>&1 || printf 'ended by code %s after ' $? >&2; } 2>&1)
    kill $(jobs -p) && wait 2> /dev/null
    printf '%-52s %6s %6s\n' "$name" "$idle" "$busy"
}

printf '%-52s %6s %6s\n' "seconds" idle busy
train="python train.py --target none --out {}"
python train.py --target none --out "$folder/run" > /dev/null
for _ in 1 2; do
    measure "train.py" $train
done
measure "train.py --threads 2" $train --threads 2
measure "train.py --evaluate" python train.py --evaluate "$folder/run/best.pt"
measure "benchmark.py fast --runs 1" python benchmark.py fast --runs 1 --out {}
measure "predict.py" python predict.py demo/five.jpg
rm -r "$folder"
