//! Schedules: exact replay, and a text format that refuses what does not fit.

use lazytlb_machine::{Limits, Machine, MemoryModel, Schedule, Search};
use lazytlb_programs::{READER_FENCE, WRITER_FENCE, hazard, shootdown};
use proptest::prelude::*;

const PROGRAM: u64 = 0;

fn buggy(program: usize, memory: MemoryModel) -> Machine {
    match program {
        0 => hazard(2, 1, memory, &[READER_FENCE, WRITER_FENCE]),
        1 => shootdown(2, 1, memory, true),
        _ => shootdown(1, 2, memory, true),
    }
}

/// A schedule of a bug, found at random.
fn found(program: usize, seed: u64) -> (Machine, Schedule) {
    let machine = buggy(program, MemoryModel::Tso);
    let result = machine.explore(Search::Random { seed, executions: 100_000 }, Limits::default());
    let schedule = result.found.first().expect("a bug that random search finds").schedule.clone();
    (machine, schedule)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_printed_is_read_back_and_replays_to_the_same(program in 0..3_usize, seed: u64) {
        let (machine, schedule) = found(program, seed);
        let text = schedule.to_string();
        let read: Schedule = text.parse().unwrap();
        prop_assert_eq!(&read, &schedule);
        prop_assert_eq!(read.to_string(), text);
        let first = machine.replay(&read, PROGRAM).unwrap();
        prop_assert_eq!(first.schedule.trace, schedule.trace);
        prop_assert_eq!(first.verdicts.len(), 1);
        let again = machine.replay(&read, PROGRAM).unwrap();
        prop_assert_eq!((again.log, again.verdicts), (first.log, first.verdicts));
    }

    /// A byte more, a byte less, another byte: an error, or a schedule that fits or is refused; never a panic.
    #[test]
    fn a_damaged_schedule_never_panics(seed in 0..4_u64, at: prop::sample::Index, byte: u8, kind in 0..3) {
        let (machine, schedule) = found(1, seed);
        let mut text = schedule.to_string().into_bytes();
        let at = at.index(text.len());
        match kind {
            0 => text[at] = byte,
            1 => text.insert(at, byte),
            _ => drop(text.remove(at)),
        }
        if let Ok(text) = String::from_utf8(text)
            && let Ok(schedule) = text.parse::<Schedule>()
        {
            let _ = machine.replay(&schedule, PROGRAM);
        }
    }
}

#[test]
fn a_schedule_for_something_else_is_refused() {
    let (machine, schedule) = found(1, 1);
    let error = machine.replay(&schedule, PROGRAM + 1).unwrap_err();
    assert!(error.message.contains("another program"), "{error}");
    // The right program without the bug: the steps do something else.
    let right = shootdown(2, 1, MemoryModel::Tso, false);
    let error = right.replay(&schedule, PROGRAM).unwrap_err();
    assert!(!error.message.is_empty());
}

#[test]
fn the_step_that_does_not_fit_is_named_by_its_place() {
    let (machine, schedule) = found(1, 1);
    let text = schedule.to_string();
    let line = text.lines().nth(3).unwrap();
    let second = line.find(' ').unwrap() + 1;
    let refused = |steps: &str| {
        let text = text.replacen(line, steps, 1);
        machine.replay(&text.parse().unwrap(), PROGRAM).unwrap_err().to_string()
    };
    let with_another = format!("{}irq0.31 {}", &line[..second], &line[second..]);
    assert_eq!(refused(&with_another), format!("4:{}: a step of the schedule cannot happen here", second + 1));
    let with_more = format!("{line} drain0");
    assert_eq!(refused(&with_more), format!("4:{}: the execution ends before the schedule does", line.len() + 2));
    let with_less = line.rsplit_once(' ').unwrap().0;
    let last = with_less.rfind(' ').unwrap() + 2;
    assert_eq!(refused(with_less), format!("4:{last}: the schedule ends before the execution does"));
    assert_eq!(refused(""), "4:1: the schedule ends before the execution does");
}

#[test]
fn a_schedule_that_is_none_is_refused_with_its_place() {
    let header = "lazytlb-schedule 1\nprogram 0000000000000000\ntrace 0000000000000000\n";
    for (text, expected) in [
        (String::new(), "1:1: not a schedule: expected `lazytlb-schedule 1`"),
        ("lazytlb-schedule 2\n".into(), "1:18: this version of the format is not known; expected 1"),
        ("lazytlb-schedule 1\nprogram xyz\n".into(), "2:1: expected `program` and 16 hexadecimal digits"),
        (
            format!("{header}cpu0 jump1\n"),
            "4:6: `jump1` is no step; expected cpuN, drainN, irqN.V, nmiN.V, pickN=V or readN=V, and *COUNT",
        ),
        (
            format!("{header}cpu0*0\n"),
            "4:1: `cpu0*0` is no step; expected cpuN, drainN, irqN.V, nmiN.V, pickN=V or readN=V, and *COUNT",
        ),
    ] {
        assert_eq!(text.parse::<Schedule>().unwrap_err().to_string(), expected);
    }
}

#[test]
fn a_shrunk_schedule_shows_the_same_with_fewer_switches() {
    let (machine, _) = found(0, 3);
    let result = machine.explore(Search::Random { seed: 3, executions: 100_000 }, Limits::default());
    let long = &result.found[0];
    let short = machine.shrink(long, 100_000);
    assert_eq!(short.verdict.kind, long.verdict.kind);
    assert!(short.schedule.runs() <= long.schedule.runs());
    assert_eq!(machine.replay(&short.schedule, PROGRAM).unwrap().verdicts[0].kind, long.verdict.kind);
}
