#!/usr/bin/env bash
# How fast traces are replayed, beside what perf needs for the same events: benches/replay.sh [SWITCHES]
#
# Records `sched:*` and `tlb:*` while two tasks play ping-pong through a pipe (perf, root), prints them as text once, and
# then times, in turn and three times each: perf printing them, `perf sched latency`, and the replay of that text under one
# strategy and under all. Peak memory is measured on the whole text and on a tenth of it.
set -euo pipefail
cd "$(dirname "$0")/.."
switches=${1:-250000}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
command -v perf >/dev/null || { echo "SKIPPED: perf is not installed"; exit 0; }
perf record -q -a -m 8192 -o "$folder/data" -e 'sched:*' -e 'tlb:*' -- perf bench sched pipe -l "$switches" >/dev/null ||
    { echo "SKIPPED: perf may not record here"; exit 0; }
perf script -i "$folder/data" >"$folder/text" 2>/dev/null
head -n $(($(wc -l <"$folder/text") / 10)) "$folder/text" >"$folder/tenth"
cargo build --release --quiet
replay=target/release/lazytlb

seconds() {
    local before after
    before=$(date +%s%N)
    "$@" >/dev/null 2>&1
    after=$(date +%s%N)
    echo $((after - before)) | awk '{ printf "%.3f\n", $1 / 1e9 }'
}
for round in 1 2 3; do
    seconds perf script -i "$folder/data" >>"$folder/script"
    seconds $replay replay "$folder/text" --strategy refcount >>"$folder/one"
    seconds perf sched -i "$folder/data" latency >>"$folder/latency"
    seconds $replay replay "$folder/text" >>"$folder/all"
done
median() { sort -n "$folder/$1" | sed -n 2p; }
spread() { sort -n "$folder/$1" | sed -n '1p;3p' | paste -sd' ' | sed 's/ / to /'; }
echo "$(wc -l <"$folder/text") events; seconds, median of 3 (spread)"
for what in script one latency all; do
    case $what in
    script) name="perf script" ;;
    one) name="lazytlb replay, one strategy" ;;
    latency) name="perf sched latency" ;;
    all) name="lazytlb replay, all strategies" ;;
    esac
    printf '  %-32s %s (%s)\n' "$name" "$(median $what)" "$(spread $what)"
done
awk -v script="$(median script)" -v one="$(median one)" -v latency="$(median latency)" -v all="$(median all)" 'BEGIN {
    printf "one strategy takes %.3f of perf script; all strategies take %.2f of perf sched latency\n", one / script, all / latency }'
peak() { command -v /usr/bin/time >/dev/null && /usr/bin/time -f %M "$replay" replay "$1" 2>&1 >/dev/null | tail -1; }
echo "peak memory: $(peak "$folder/tenth") KiB for a tenth of the trace, $(peak "$folder/text") KiB for all of it"
