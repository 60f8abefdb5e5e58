//! The bundled traces: the replay agrees with the kernel's own word, notices when a trace is tampered with, counts what
//! the strategies must do, and refuses what is no trace.

use std::fs;
use std::io::Read;
use std::path::PathBuf;

use flate2::read::GzDecoder;
use lazytlb_replay::{Options, Replayer, Report, TasksFile, text};
use lazytlb_sched_model::{Rules, Strategy};
use proptest::prelude::*;

const TRACES: [&str; 2] = ["fork-exit", "pipes-threads"];

fn path(name: &str, ending: &str) -> PathBuf {
    PathBuf::from(format!("{}/../traces/{name}.{ending}", env!("CARGO_MANIFEST_DIR")))
}

fn plain(name: &str) -> String {
    let mut text = String::new();
    GzDecoder::new(fs::File::open(path(name, "trace.gz")).unwrap()).read_to_string(&mut text).unwrap();
    text
}

fn options(name: &str) -> Options {
    Options { tasks: Some(TasksFile::parse(&fs::read(path(name, "tasks")).unwrap()).unwrap()), ..Options::default() }
}

fn replay(name: &str, text: &str) -> Report {
    Replayer::new(options(name)).run(text.as_bytes(), |_| {}).unwrap()
}

#[test]
fn the_replay_agrees_with_the_kernel() {
    for name in TRACES {
        let report = replay(name, &plain(name));
        let truth = report.truth.expect("the traces have tlb_flush events");
        assert!(truth.compared > 900, "{name}: {} compared", truth.compared);
        assert!(truth.agreement() >= 0.995, "{name}: {:?}", truth.disagreements);
        assert!(truth.unknown * 100 < report.switches, "{name}: {} unknown", truth.unknown);
    }
}

/// What is compared is the trace's own word: take some of it away, and the replay disagrees that often.
#[test]
fn a_trace_that_was_tampered_with_is_noticed() {
    let (name, text) = ("pipes-threads", plain("pipes-threads"));
    let mut seen = 0;
    let (mut kept, mut removed) = (String::new(), 0);
    for line in text.lines() {
        if line.contains("d..2.") && line.contains("flush on task switch") {
            seen += 1;
            if seen % 20 == 0 {
                removed += 1;
                continue;
            }
        }
        kept.push_str(line);
        kept.push('\n');
    }
    let truth = replay(name, &kept).truth.unwrap();
    assert_eq!(truth.compared - truth.agree, removed, "of {}", truth.compared);
    // A kernel that switched away from every borrowed mm would load more often than this one did.
    let report = replay(name, &text);
    let loads = |strategy| {
        report.strategies.iter().find(|one| one.strategy == strategy).map(|one| one.counts.root_loads).unwrap()
    };
    assert!(loads(Strategy::NoLazy) > loads(Strategy::Refcount));
}

#[test]
fn strategies_cost_what_they_must() {
    for rules in Rules::SIMPLE {
        let options = Options { rules, ..options("fork-exit") };
        let report = Replayer::new(options).run(plain("fork-exit").as_bytes(), |_| {}).unwrap();
        let of = |strategy| report.strategies.iter().find(|one| one.strategy == strategy).unwrap().counts;
        let (refcount, hazard, shootdown) =
            (of(Strategy::Refcount), of(Strategy::HazardConvert), of(Strategy::Shootdown));
        for one in &report.strategies {
            assert_eq!(one.counts.warnings, 0, "{}", one.strategy);
            assert_eq!(one.counts.died, refcount.died, "the same address spaces end under {}", one.strategy);
        }
        // A borrow costs the counting strategy read-modify-writes, and the others a fence.
        assert!(shootdown.rmw < refcount.rmw);
        assert!(shootdown.fences > refcount.fences && hazard.fences > refcount.fences);
        // Who evicts frees at once; who counts waits for the borrowers.
        assert_eq!(shootdown.zombie_byte_seconds(), 0.0);
        assert_eq!(shootdown.freed, shootdown.died);
        assert!(refcount.zombie_byte_seconds() > 0.0);
        assert_eq!(hazard.freed, refcount.freed);
        if rules == Rules::Broadcast {
            assert!(report.truth.is_none(), "the trace is of a machine with other rules");
            assert!(shootdown.ipis > 0);
        }
    }
}

/// The same events in perf's layout, out of order within a small window, give the same counts.
#[test]
fn layouts_and_order_do_not_matter() {
    let name = "pipes-threads";
    let text = plain(name);
    let expected = replay(name, &text);
    let as_perf: Vec<String> = text
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (task, rest) = line.split_once(" [").unwrap();
            let (comm, pid) = task.trim().rsplit_once('-').unwrap();
            let (cpu, rest) = rest.split_once("] ").unwrap();
            // perf has no flags, and so cannot tell an interrupt's events.
            let (_flags, rest) = rest.split_once(' ').unwrap();
            let (time, rest) = rest.trim_start().split_once(": ").unwrap();
            format!("{comm:>16} {pid:>5} [{cpu}] {time}: {:>30}{rest}", "sched:")
        })
        .collect();
    let report = replay(name, &as_perf.join("\n"));
    assert_eq!((report.events, report.switches), (expected.events, expected.switches));
    assert!(report.truth.unwrap().agreement() > 0.99);

    let report = replay(name, &text.replace('\n', "\r\n"));
    assert_eq!((report.events, report.truth.unwrap().agree), (expected.events, expected.truth.as_ref().unwrap().agree));

    // Lines of the same microsecond keep the order in which they come, so only others can change places.
    let time = |line: &str| line.split(": ").next().and_then(|head| head.rsplit(' ').next()).map(str::to_owned);
    let mut lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    for index in (0..lines.len() - 8).step_by(8) {
        let times: Vec<_> = lines[index..index + 8].iter().map(|line| time(line)).collect();
        if times.windows(2).all(|pair| pair[0] != pair[1]) {
            lines[index..index + 8].reverse();
        }
    }
    let report = replay(name, &lines.join("\n"));
    assert!(report.reordered > 1000, "{}", report.reordered);
    let (truth, expected_truth) = (report.truth.unwrap(), expected.truth.unwrap());
    assert_eq!(truth.agree, truth.compared);
    // Each CPU's last switch is compared only if something comes after it.
    assert!(truth.compared.abs_diff(expected_truth.compared) <= 2);
    // Those that free later do so on whichever CPU does something next, and at its time.
    for (one, other) in
        report.strategies.iter().zip(&expected.strategies).filter(|(one, _)| !one.strategy.frees_later())
    {
        assert_eq!(one.counts, other.counts);
    }
}

/// How often a CPU leaves another task than the one that it was said to have gone to: counted from the text alone.
fn switches_that_are_missing(text: &str) -> u64 {
    let number = |line: &str, key: &str| {
        line.split_once(key).unwrap().1.split([' ', '\n']).next().unwrap().parse::<u32>().unwrap()
    };
    let mut running = std::collections::HashMap::new();
    let mut missing = 0;
    for line in text.lines().filter(|line| line.contains(": sched_switch:")) {
        let cpu = line.split_once(" [").unwrap().1.split(']').next().unwrap();
        let prev = number(line, "prev_pid=");
        missing += u64::from(running.insert(cpu, number(line, "next_pid=")).is_some_and(|next| next != prev));
    }
    missing
}

#[test]
fn inferred_switches_are_those_that_are_missing() {
    for name in TRACES {
        let text = plain(name);
        let (inferred, missing) = (replay(name, &text).inferred_switches, switches_that_are_missing(&text));
        // A task that shows up elsewhere has left where it was: one more for each at the most.
        assert!((missing..=missing + missing / 10 + 1).contains(&inferred), "{name}: {inferred} of {missing}");
    }
}

/// One process, two CPUs: what it costs can be told by hand.
#[test]
fn a_small_trace_costs_what_it_must() {
    let mut text = String::new();
    let mut line = |cpu: u32, at: u32, task: &str, what: &str| {
        text += &format!("{task:>16} [{cpu:03}] d..2. 10.{at:03}000: {what}\n");
    };
    let switch = |prev: &str, state: &str, next: &str| {
        let pid = |task: &str| task.rsplit('-').next().unwrap().to_owned();
        format!(
            "sched_switch: prev_comm=x prev_pid={} prev_prio=1 prev_state={state} ==> next_comm=y next_pid={} next_prio=1",
            pid(prev),
            pid(next)
        )
    };
    line(0, 0, "sh-100", "task_newtask: pid=200 comm=sh clone_flags=1200011 oom_score_adj=0");
    line(1, 1, "<idle>-0", &switch("<idle>-0", "R", "sh-200"));
    // CPU 1 borrows the child's address space, CPU 0 runs the child to its end, and goes back to its parent.
    line(1, 2, "sh-200", &switch("sh-200", "S", "<idle>-0"));
    line(0, 3, "sh-100", &switch("sh-100", "S", "sh-200"));
    line(0, 4, "sh-200", "sched_process_exit: comm=sh pid=200 prio=1");
    line(0, 5, "sh-200", &switch("sh-200", "Z", "sh-100"));
    // Two milliseconds later CPU 1 leaves it too.
    line(1, 7, "<idle>-0", &switch("<idle>-0", "R", "sh-300"));
    line(1, 8, "sh-300", &switch("sh-300", "S", "<idle>-0"));
    let report = Replayer::new(Options::default()).run(text.as_bytes(), |_| {}).unwrap();
    assert_eq!((report.switches, report.inferred_switches), (6, 0));
    let of = |strategy| report.strategies.iter().find(|one| one.strategy == strategy).unwrap().counts;
    for one in &report.strategies {
        // One mm makes no batch, and the trace is over before it has lingered long enough.
        let freed = u64::from(one.strategy != Strategy::ShootdownBatched);
        assert_eq!((one.counts.died, one.counts.freed), (1, freed), "{}", one.strategy);
    }
    let (refcount, hazard) = (of(Strategy::Refcount), of(Strategy::HazardConvert));
    // It dies with the exit and is freed when CPU 1 leaves it: a struct and a root table for three milliseconds.
    assert_eq!(refcount.longest_reclaim_ns, 3_000_000);
    assert!((refcount.zombie_byte_seconds() - 0.003 * 10.0 * 1024.0).abs() < 1e-9);
    assert_eq!((hazard.longest_reclaim_ns, of(Strategy::HazardIpi).longest_reclaim_ns), (3_000_000, 0));
    // The flush of the exit interrupts CPU 1; under HazardIpi, the freeing does so once more.
    assert_eq!((refcount.interrupted, hazard.interrupted, of(Strategy::HazardIpi).interrupted), (1, 1, 2));
}

#[test]
fn what_is_lost_is_inferred_and_said() {
    let name = "pipes-threads";
    let text = plain(name);
    // A CPU misses a stretch, and says so.
    let lines: Vec<&str> = text.lines().collect();
    let gap = 4000..4600;
    let mut kept: Vec<String> = lines[..gap.start].iter().map(|line| (*line).to_owned()).collect();
    kept.push("CPU:0 [LOST 300 EVENTS]".into());
    kept.extend(lines[gap.clone()].iter().filter(|line| !line.contains("[000]")).map(|line| (*line).to_owned()));
    kept.extend(lines[gap.end..].iter().map(|line| (*line).to_owned()));
    let report = replay(name, &kept.join("\n"));
    assert_eq!(report.losses, 1);
    assert!(report.inferred_switches >= switches_that_are_missing(&kept.join("\n")));
    assert!(report.truth.unwrap().agreement() >= 0.99);
}

/// Lines of one CPU, a millisecond apart: the task in the first column, its number, and what happens.
fn trace(lines: &[(&str, u32, &str)]) -> String {
    let line = |(at, (comm, pid, what)): (usize, &(&str, u32, &str))| {
        format!("{comm:>16}-{pid:<7} [000] d..2. 10.{at:03}000: {what}\n")
    };
    lines.iter().enumerate().map(line).collect()
}

#[test]
fn a_thread_that_execs_takes_its_leaders_number() {
    let report = replay(
        "fork-exit",
        &trace(&[
            ("sh", 100, "task_newtask: pid=200 comm=sh clone_flags=1200011 oom_score_adj=0"),
            (
                "sh",
                100,
                "sched_switch: prev_comm=sh prev_pid=100 prev_prio=120 prev_state=S ==> next_comm=sh next_pid=200 next_prio=120",
            ),
            ("sh", 200, "task_newtask: pid=201 comm=sh clone_flags=3d0f00 oom_score_adj=0"),
            ("sh", 200, "sched_process_exit: comm=sh pid=200 prio=120"),
            (
                "sh",
                200,
                "sched_switch: prev_comm=sh prev_pid=200 prev_prio=120 prev_state=Z ==> next_comm=sh next_pid=201 next_prio=120",
            ),
            // From here on it is called 200.
            ("sh", 200, "tlb_flush: pages:-1 reason:flush on task switch (0)"),
            ("sh", 200, "sched_process_exec: filename=/bin/ls pid=200 old_pid=201"),
            (
                "ls",
                200,
                "sched_switch: prev_comm=ls prev_pid=200 prev_prio=120 prev_state=S ==> next_comm=swapper/0 next_pid=0 next_prio=120",
            ),
        ]),
    );
    assert_eq!((report.switches, report.inferred_switches), (3, 0));
    let counts = report.strategies.iter().find(|one| one.strategy == Strategy::Refcount).unwrap().counts;
    assert_eq!((counts.died, counts.freed, counts.warnings), (1, 1, 0), "the threads' common address space is gone");
}

#[test]
fn a_line_about_a_task_that_does_not_run_changes_nothing() {
    let text = plain("pipes-threads");
    let whole = replay("pipes-threads", &text);
    let mut other = String::new();
    for line in text.lines() {
        if let Some((place, _)) = line.split_once("sched_switch") {
            other.push_str(&format!("{place}sched_process_exec: filename=/bin/sh pid=99999 old_pid=99999\n"));
            other.push_str(&format!("{place}sched_process_exit: comm=sh pid=99999 prio=120\n"));
        }
        other.push_str(line);
        other.push('\n');
    }
    let report = replay("pipes-threads", &other);
    for (one, other) in report.strategies.iter().zip(&whole.strategies) {
        assert_eq!(one.counts, other.counts, "{}", one.strategy);
    }
}

#[test]
fn what_is_no_trace_is_refused() {
    let refused = |bytes: &[u8]| {
        let source = text::reader(std::io::Cursor::new(bytes.to_vec())).unwrap();
        Replayer::new(Options::default()).run(source, |_| {}).unwrap_err().in_file("t")
    };
    assert!(refused(b"").starts_with("t:1:1: not a trace"));
    assert!(refused(b"hello\nworld\n").starts_with("t:1:1: not a trace"));
    assert!(refused(&[0; 1 << 19]).contains("a line of more than"));
    let no_switch = b"  sh-7  [000] d..2. 1.5: sched_waking: comm=x pid=1\n";
    assert!(refused(no_switch).contains("no sched_switch events"));
    let text = plain("fork-exit");
    let backwards: Vec<&str> = text.lines().rev().filter(|line| !line.starts_with('#')).collect();
    let error = refused(backwards.join("\n").as_bytes());
    assert!(error.ends_with(":1: more than 256 events too late: a trace is in the order of time"), "{error}");
    // A gzipped file that ends too early.
    let whole = fs::read(path("fork-exit", "trace.gz")).unwrap();
    let error = refused(&whole[..whole.len() / 2]);
    let (line, column) = (error.split(':').nth(1).unwrap(), error.split(':').nth(2).unwrap());
    assert!(line.parse::<u64>().unwrap() > 1000 && column == "1", "{error}");
    let error = TasksFile::parse(b"1 1 0 init\n2 x 1 kthreadd\n").unwrap_err();
    assert_eq!(error.in_file("t"), "t:2:3: expected: NUMBER GROUP 0|1 NAME");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Damaged traces are refused or replayed; nothing panics, and whatever they say, the library is not made to do what no
    /// kernel does.
    #[test]
    fn damaged_traces_never_panic(
        start in 0..10_000_usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..4), 1..20),
        tasks: bool,
    ) {
        let text = plain("pipes-threads");
        let lines: Vec<&str> = text.lines().skip(start).take(400).collect();
        let mut bytes = lines.join("\n").into_bytes();
        for (at, byte, kind) in edits {
            if bytes.is_empty() {
                break;
            }
            let at = at.index(bytes.len());
            match kind {
                0 => bytes[at] = byte,
                1 => bytes.insert(at, byte),
                2 => drop(bytes.remove(at)),
                // A digit becomes another: other tasks, CPUs, times.
                _ => {
                    if let Some(digit) = bytes[at..].iter_mut().find(|byte| byte.is_ascii_digit()) {
                        *digit = b'0' + byte % 10;
                    }
                }
            }
        }
        let options = if tasks { options("pipes-threads") } else { Options::default() };
        if let Ok(report) = Replayer::new(options).run(&bytes[..], |_| {}) {
            for one in report.strategies {
                prop_assert_eq!(one.counts.warnings, 0, "{}", one.strategy);
                prop_assert!(one.counts.freed <= one.counts.died, "{}", one.strategy);
            }
        }
    }
}
