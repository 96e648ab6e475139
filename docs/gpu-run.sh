#!/usr/bin/env bash
# What is still to be run on one GPU, in parts of less than ten minutes each (docs/gpu-runs.md).
#
#   bash docs/gpu-run.sh OUT correct|ijepa|tcjepa|loop
#
# Run it in the repository's root. JSON, logs and a trace go to OUT; the last lines are a summary.
set -uo pipefail
out=${1:?where results go}; part=${2:?correct, ijepa, tcjepa or loop}
mkdir -p "$out"
export PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
data=$(mktemp -d)
started=$SECONDS extra=0

# run NAME SECONDS COMMAND…: keeps the output in OUT, says how it ended, and goes on whatever it was.
# Compiling takes what it takes, so limits are wide; all of a part together has 590 seconds.
run() {
    local name=$1 limit=$2 left=$((590 + extra - (SECONDS - started))); shift 2
    limit=$((limit < left ? limit : left))
    if [ $limit -lt 10 ]; then echo "$name: no time left"; return; fi
    timeout "$limit" "$@" >"$out/$name.txt" 2>"$out/$name.log"
    local code=$?
    echo "[$((SECONDS - started)) s] $name: exit $code"
    [ $code -eq 0 ] || tail -n 5 "$out/$name.log" "$out/$name.txt"
}
check() { local name=$1 limit=$2; shift 2; run "$name" "$limit" python3 -m tcjepa.bench.gpu_checks "$@"; }
step() { local name=$1; shift; run "$name" 280 python3 -m tcjepa bench step "$@" --json "$out/$name.json"; }

nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
python3 -c 'import torch, timm, transformers as t; print(torch.__version__, timm.__version__, t.__version__)'

case $part in
correct)
    check shards 45 shards "$data" 1024
    check losses 210 losses "$data"
    check syncs 90 syncs vit_b16 "data.shards=$data/shards" "text.encoder=$data/t5" \
        train.batch=64 train.micro_batch=null train.compile=false
    run tests 210 python3 -m pytest -q -n 12 -p no:cacheprovider \
        tests/tcjepa/model tests/tcjepa/train tests/tcjepa/bench tests/tcjepa/test_text.py \
        tests/tcjepa/test_text_packing.py tests/tcjepa/test_masks.py
    cat "$out/losses.txt" "$out/syncs.txt"; tail -n 15 "$out/tests.txt"
    ;;
ijepa)
    for batch in 128 64 256; do
        step "ijepa-l16-$batch" vit_l16 model.text=null --batch $batch --rounds 3
    done
    cat "$out"/ijepa-l16-*.txt
    ;;
tcjepa)
    step tcjepa-l16 vit_l16 --batch 64 --rounds 3
    step tcjepa-b16 vit_b16 --batch 128 --rounds 5 --profile "$out/tcjepa-b16-trace.json"
    gzip -f "$out/tcjepa-b16-trace.json"
    cat "$out"/tcjepa-*.txt
    ;;
loop)
    run loader 120 python3 -m tcjepa bench loader --json "$out/loader.json"
    check shards 45 shards "$data" 16384
    common=("data.shards=$data/shards" data.workers=14 train.batch=128 train.micro_batch=null)
    check loop-b16-t5 240 loop vit_b16 "${common[@]}" "text.encoder=$data/t5"
    check loop-l16-ijepa 200 loop vit_l16 "${common[@]}" model.text=null train.monitor_every=500
    # Where loading is what training waits for: a small model, with crops resized here and there.
    for resize in loader device; do
        check "loop-s16-$resize" 60 loop vit_s16 "${common[@]}" model.text=null "data.resize=$resize"
    done
    cat "$out/loader.txt" "$out"/loop-*.txt
    if [ "$(nvidia-smi -L | wc -l)" -gt 1 ]; then
        extra=240
        for kind in ddp fsdp2; do
            run "ranks-$kind" 120 torchrun --nproc-per-node 2 -m tcjepa pretrain scenes_tiny \
                "run=$data/$kind" "data.shards=$data/shards" train.steps=40 train.warmup_steps=4 \
                "train.parallel=$kind" train.trace=true train.evaluate_after=false
            cp "$data/$kind/trace.jsonl" "$out/ranks-$kind.jsonl"
        done
    fi
    ;;
*) echo "no part $part: correct, ijepa, tcjepa or loop" >&2; exit 2 ;;
esac
rm -rf "$data"
