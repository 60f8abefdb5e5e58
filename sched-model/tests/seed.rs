//! The seed case, in its two forms, under every strategy and memory model.

#[expect(dead_code, reason = "it has more than is needed here")]
mod common;

use std::collections::BTreeSet;

use common::{bundled, kinds};
use lazytlb_machine::{Exploration, Kind, Limits, MemoryModel, Reduction, Search};
use lazytlb_sched_model::{Model, Rules, Setting, Strategy, seed};

fn setting(strategy: Strategy, rules: Rules, memory: MemoryModel) -> Setting {
    Setting::new(strategy, rules, memory)
}

fn explore(setting: &Setting, checks_active_mm: bool) -> Exploration {
    let model = Model::new(&seed::program(checks_active_mm), setting);
    let limits = Limits { stop_at_first: false, ..Limits::default() };
    let exploration = model.explore(Search::Exhaustive(Reduction::Full), limits, |_| {});
    assert!(exploration.complete, "{setting:?}");
    exploration
}

/// (a) x86: the flush of the last mmput moves the lazy CPU's MMU and leaves `active_mm` alone.
#[test]
fn where_a_flush_moves_the_mmu_the_pointer_dangles_and_the_hardware_is_safe() {
    for memory in MemoryModel::ALL {
        let x86 = setting(Strategy::Unprotected, Rules::Ipi, memory);
        assert_eq!(kinds(&explore(&x86, true)), [Kind::Holds, Kind::Dereferences].into(), "with the one-byte check");
        assert_eq!(kinds(&explore(&x86, false)), [Kind::Holds].into(), "without it");
    }
}

/// (b) A machine whose flush interrupts nobody.
#[test]
fn where_a_flush_interrupts_nobody_the_hardware_reaches_freed_tables() {
    for memory in MemoryModel::ALL {
        let broadcast = setting(Strategy::Unprotected, Rules::Broadcast, memory);
        assert!(kinds(&explore(&broadcast, false)).contains(&Kind::HardwareReaches));
    }
}

#[test]
fn a_strategy_passes_wherever_it_claims_to() {
    let file = bundled().into_iter().find(|litmus| litmus.program.name == "b01-x86").unwrap();
    for memory in MemoryModel::ALL {
        for rules in Rules::ALL {
            // The same program is a bundled test, which says where it is too large.
            let is_run = |&strategy: &Strategy| strategy.claims(rules) && !file.is_slow_under(strategy, rules, memory);
            for strategy in Strategy::all().filter(is_run) {
                for checks_active_mm in [false, true] {
                    let exploration = explore(&setting(strategy, rules, memory), checks_active_mm);
                    assert_eq!(kinds(&exploration), BTreeSet::new(), "{strategy} {rules} {memory}");
                }
            }
        }
    }
}

/// What was found can be shrunk, kept as text, replayed exactly, and reads as a kernel developer expects.
#[test]
fn the_report_shows_the_bug_and_the_schedule_replays() {
    let setting = setting(Strategy::Unprotected, Rules::Ipi, MemoryModel::Sc);
    let model = Model::new(&seed::program(true), &setting);
    let exploration = model.explore(Search::Exhaustive(Reduction::Full), Limits::default(), |_| {});
    let found = exploration.found.iter().find(|found| found.verdict.kind == Kind::Dereferences).unwrap();
    let short = model.shrink(found);
    assert!(short.schedule.runs() <= found.schedule.runs());

    let kept: lazytlb_machine::Schedule = short.schedule.to_string().parse().unwrap();
    assert_eq!(kept, short.schedule);
    let recording = model.replay(&kept).unwrap();
    assert!(recording.verdicts.contains(&short.verdict));
    assert_eq!(model.replay(&kept).unwrap().log, recording.log, "exactly the same again");
    // Where a function stands in its file is no part of what the report promises.
    insta::with_settings!({ filters => [(r"\.rs:\d+", ".rs:LINE")] }, {
        insta::assert_snapshot!(model.report(&short, Some("lazytlb litmus seed")).unwrap());
    });

    let other = Model::new(&seed::program(false), &setting);
    assert!(other.replay(&kept).is_err(), "a schedule of another program is refused");
}
