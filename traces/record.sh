#!/bin/sh
# record.sh OUT COMMAND...: records a scheduler trace of this machine while COMMAND runs, as the bundled ones were.
#
# Writes OUT.trace, the text of tracefs, and OUT.tasks, who the tasks at the start are (number, thread group, 1 for a
# kernel thread, name). Needs root, and x86 for tlb_flush, the events by which a replay is checked.
set -eu
out=$1
shift
tracing=/sys/kernel/tracing
mountpoint -q $tracing || mount -t tracefs tracefs $tracing
instance=$tracing/instances/lazytlb-$$
mkdir "$instance"
trap 'echo 0 > "$instance/tracing_on"; rmdir "$instance"' EXIT
echo 0 > "$instance/tracing_on"
echo "${BUFFER_KB:-16384}" > "$instance/buffer_size_kb"
echo mono > "$instance/trace_clock"
for event in sched/sched_switch sched/sched_process_fork sched/sched_process_exec sched/sched_process_exit \
    sched/sched_migrate_task task/task_newtask tlb/tlb_flush ipi/ipi_send_cpu ipi/ipi_send_cpumask; do
    echo 1 > "$instance/events/$event/enable" || echo "this kernel has no $event" >&2
done
echo 1 > "$instance/tracing_on"
for task in /proc/[0-9]*/task/[0-9]*; do
    awk -v number="${task##*/}" '/^Name:/ { name = $2 } /^Tgid:/ { group = $2 } /^Kthread:/ { kernel = $2 }
        END { if (group != "") print number, group, kernel + 0, name }' "$task/status" 2>/dev/null || true
done > "$out.tasks"
"$@" || echo "the command failed; the trace is kept" >&2
echo 0 > "$instance/tracing_on"
cat "$instance/trace" > "$out.trace"
